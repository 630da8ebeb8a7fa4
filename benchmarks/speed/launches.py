"""The launches of a captured PeerAiD step in bf16, with the bytes and operations of each.

They are those of the program's own chain and layers, which run on tensors that have shapes and no numbers.
Without compiling: PyTorch's operators, cuDNN and the kernels of `fastpeer.kernels`.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode

from benchmarks.speed.launch_costs import Gpu, Launch
from benchmarks.steps.cases import Case
from fastpeer.kernels.choice import torch_kernels
from fastpeer.kernels.first_convolution import takes as stem_takes
from fastpeer.kernels.sign_bits import empty_signs
from fastpeer.models import build_model
from fastpeer.victims.chain import Chain
from fastpeer.victims.chain_steps import Add, Convolve, Reshape, Step
from fastpeer.victims.convolution import PlainConvolutions, is_own
from fastpeer.victims.folding import FoldedConv2d, FoldedNetwork
from fastpeer.victims.head import Head


@dataclass(frozen=True)
class Parts:
    """Which of `EngineConfig`'s kernels run; fold, chain, merge, kernels and graph always do."""

    convolutions: bool = True
    other_convolutions: bool = True
    sign_bits: bool = True
    stem: bool = True
    stem_step: bool = True
    head: bool = True
    batchnorm: bool = True

    def on(self, gpu: Gpu) -> "Parts":
        """Return those of them that a GPU can run; sign bits come with the convolutions alone."""
        convolutions = self.convolutions and gpu.copy_engine
        return replace(self, convolutions=convolutions, sign_bits=self.sign_bits and convolutions)


BACK, WEIGHTS = ", input gradient", ", weight gradient"
SUM, MASK = "sum of gradients", "ReLU's mask"
CONVOLUTION = "cuDNN convolution"


def size(*tensors: Tensor | None) -> float:
    """Return the bytes of tensors, each read or written once."""
    return sum(float(tensor.numel() * tensor.element_size()) for tensor in tensors if tensor is not None)


class CountedConvolutions(PlainConvolutions):
    """A chain's convolutions, which compute shapes only and note what would be launched.

    Args:
        parts: which kernels of our own there are.
    """

    def __init__(self, parts: Parts) -> None:
        self.parts = parts
        self.launches: list[Launch] = []

    def forward(self, conv: FoldedConv2d, x: Tensor, residual: Tensor | None, relu: bool) -> Tensor:
        """Note one launch where one kernel does all of it, else convolution, then bias, sum and ReLU."""
        out = _like(super().forward(conv, x, None, relu), conv.result_dtype)
        flop = _flop(out, conv.weight)
        moved = _read_of(conv, x) + size(conv.weight, out)
        if self._is_stem(conv, x):
            self._note("_forward", 0, moved)
        elif self._is_own(conv, x):
            self._note("_convolution", flop, moved + size(residual))
        elif residual is not None and relu:
            self._note(CONVOLUTION, flop, moved + size(residual))
        else:
            self._note(CONVOLUTION, flop, moved)
            self._note("_bias_sum_relu", 0, size(out, out, residual))
        return out

    def input_gradient(
        self, conv: FoldedConv2d, x: Tensor, gradient: Tensor, accumulated: Tensor | None
    ) -> Tensor:
        """Note the gradient's convolution, and the sum with what is accumulated."""
        return self._back(conv, x, gradient, accumulated, None)

    def forward_with_signs(
        self, conv: FoldedConv2d, x: Tensor, residual: Tensor | None
    ) -> tuple[Tensor, Tensor | None]:
        """Note what is stored beside the result."""
        out = self.forward(conv, x, residual, relu=True)
        if not self.parts.sign_bits or not self._is_own(conv, x) or self._is_stem(conv, x):
            return out, None
        signs = empty_signs(out.shape, out.device)
        self.launches[-1] = replace(self.launches[-1], bytes=self.launches[-1].bytes + size(signs))
        return out, signs

    def masked_input_gradient(
        self, conv: FoldedConv2d, x: Tensor, gradient: Tensor, accumulated: Tensor | None,
        signs: Tensor | None = None,
    ) -> Tensor:  # fmt: skip
        """Note the same, and the mask or its signs."""
        by_signs = signs is not None and self._is_own(conv, x)
        return self._back(conv, x, gradient, accumulated, signs if by_signs else x)

    def _back(
        self, conv: FoldedConv2d, x: Tensor, gradient: Tensor, accumulated: Tensor | None, mask: Tensor | None
    ) -> Tensor:
        found = torch.empty_like(x)
        flop, moved = _flop(gradient, conv.weight), size(gradient, conv.weight, found)
        if self._is_stem(conv, x):
            self._note("_back", 0, moved)
        elif self._is_own(conv, x):
            self._note("_convolution", flop, moved + size(accumulated, mask))
        else:
            self._note(CONVOLUTION + BACK, flop, moved)
            if accumulated is not None:
                self._note(SUM, 0, size(found, found, accumulated))
            if mask is not None:
                self._note(MASK, 0, size(found, found, mask))
        return found

    def _is_own(self, conv: FoldedConv2d, x: Tensor) -> bool:
        return self.parts.convolutions and is_own(conv, x, self.parts.other_convolutions)

    def _is_stem(self, conv: FoldedConv2d, x: Tensor) -> bool:
        return self.parts.stem and x.shape[1] == 3 and stem_takes(x.shape, conv.weight.shape)

    def _note(self, kernel: str, flop: float, moved: float) -> None:
        self.launches.append(Launch(kernel, flop, moved))


def _like(x: Tensor, dtype: torch.dtype) -> Tensor:
    return torch.empty_like(x, dtype=dtype, memory_format=torch.channels_last)


def _read_of(conv: FoldedConv2d, x: Tensor) -> float:
    """Return the bytes of the pixels that a layer reads; 1×1 at a stride leaves out those between."""
    left_out = conv.stride[0] * conv.stride[1] if list(conv.weight.shape[2:]) == [1, 1] else 1
    return size(x) / left_out


def _flop(out: Tensor, weight: Tensor) -> float:
    """Return the operations of a convolution: each output sums over the weights of its own channel."""
    return 2.0 * out.numel() * weight[0].numel()


@dataclass(frozen=True)
class EvalPasses:
    """What a network in eval mode launches.

    Attributes:
        forward: a forward.
        attack_step: a step of the attack: forward and back to the pixels, without the update.
        sums: bytes of the result of each residual sum.
    """

    forward: list[Launch]
    attack_step: list[Launch]
    sums: list[float]


@torch.no_grad()
def eval_passes(network: nn.Module, images: Tensor, parts: Parts) -> EvalPasses:
    """Run a network's chain on images without numbers.

    Args:
        network: in eval mode.
        images: float32 (B, 3, H, W).
        parts: which kernels there are.
    """
    convolutions = CountedConvolutions(parts)
    chain = Chain(FoldedNetwork(network, torch.bfloat16, torch_kernels().fold).module, convolutions)
    values = chain.forward(images)
    forward = [*convolutions.launches, *_other_steps(chain.steps, values)]
    convolutions.launches.clear()
    # It runs forward again.
    chain.input_gradient(images, torch.empty_like)
    head = chain.head if parts.head else None
    steps = chain.steps if head is None else head.before
    loss = _loss(values[chain.steps[-1].result]) if head is None else _head(head, values)
    others = [*_other_steps(steps, values), *_other_steps_back(steps, values), loss]
    sums = [size(values[step.result]) for step in chain.steps if len(step.sources) > 1]
    return EvalPasses(forward, [*convolutions.launches, *others], sums)


def _loss(logits: Tensor) -> Launch:
    return Launch("_attack_gradient", 0, 2 * size(logits))


def _head(head: Head, values: dict[int, Tensor]) -> Launch:
    features = values[head.features]
    return Launch("_attack_head", 0, size(features, features, head.linear.weight))


def _other_steps(steps: Sequence[Step], values: dict[int, Tensor]) -> Iterator[Launch]:
    """Yield the forward launches of what no convolution absorbed; reshaping takes none."""
    for step in steps:
        read = sum(size(values[source]) for source in step.sources)
        if not isinstance(step, (Convolve, Reshape)):
            yield Launch(type(step).__name__, 0, read + size(values[step.result]))


def _other_steps_back(steps: Sequence[Step], values: dict[int, Tensor]) -> Iterator[Launch]:
    """Yield the same on the way back, and masks."""
    for step in steps:
        result = size(values[step.result])
        if step.relu and not step.masked:
            yield Launch(MASK, 0, 3 * result)
        if not isinstance(step, (Convolve, Reshape, Add)):
            yield Launch(f"{type(step).__name__}{BACK}", 0, size(values[step.source]) + result)


@dataclass(frozen=True)
class Layer:
    """A layer of the network as it is trained: shapes of what it reads and writes, and its weights'."""

    kind: str
    x: Tensor
    out: Tensor
    weight: Tensor
    first: bool


@torch.no_grad()
def layers(network: nn.Module, images: Tensor) -> list[Layer]:
    """Return a network's convolutions and BatchNorms in the order in which they run on bf16 images."""
    found: list[Layer] = []

    def note(module: nn.Module, inputs: tuple[Tensor, ...], out: Tensor) -> None:
        kind = "norm" if isinstance(module, nn.BatchNorm2d) else "convolution"
        weight = module.weight
        assert isinstance(weight, Tensor)
        found.append(Layer(kind, inputs[0], out, weight, first=not found))

    watched = [part for part in network.modules() if isinstance(part, (nn.Conv2d, nn.BatchNorm2d))]
    handles = [part.register_forward_hook(note) for part in watched]
    network(images)
    for handle in handles:
        handle.remove()
    return found


def training_launches(
    network: nn.Module, images: Tensor, sums: Sequence[float], parts: Parts
) -> Iterator[Launch]:
    """Yield the launches of a train-mode forward and backward; bf16 but for the first convolution.

    Args:
        network: in bf16.
        images: bf16 (B, 3, H, W), both halves of a merged batch.
        sums: bytes of the result of each residual sum, for these images.
        parts: which kernels there are.
    """
    found = layers(network, images)
    # Each norm is given an equal share of the sums that are fused into some: in all it is the same.
    share = sum(sums) / sum(size(layer.x) for layer in found if layer.kind == "norm")
    for layer in found:
        if layer.kind == "norm":
            yield from _norm(layer, share, parts)
        else:
            yield from _trained_convolution(layer)
    for result in sums:
        yield Launch(SUM, 0, 3 * result)


def _trained_convolution(layer: Layer) -> Iterator[Launch]:
    """Yield forward, and the two gradients; nothing needs the one at the images."""
    moved, flop = size(layer.x, layer.weight, layer.out), _flop(layer.out, layer.weight)
    if layer.first:
        # In float32, by CUDA cores or TF32: bound by memory either way.
        yield Launch("first convolution, trained", 0, 2 * moved)
        yield Launch("first convolution's weight gradient", 0, 2 * moved)
        return
    yield Launch("weights to bf16", 0, 3 * size(layer.weight))
    yield Launch(CONVOLUTION, flop, moved)
    yield Launch(CONVOLUTION + BACK, flop, moved)
    yield Launch(CONVOLUTION + WEIGHTS, flop, moved)
    yield Launch("gradients to float32", 0, 3 * size(layer.weight))


def _norm(layer: Layer, share: float, parts: Parts) -> Iterator[Launch]:
    """Yield BatchNorm with the ReLU behind it and its share of a residual sum, forward and back."""
    x = size(layer.x)
    if parts.batchnorm:
        yield Launch("_statistics", 0, x)
        # Where nothing is added, the ReLU's mask is computed again from x; else it is read, a bit of 16.
        bits = share / 16
        mask, written = (bits, bits) if parts.sign_bits else (share, 0)
        yield Launch("_normalise", 0, (2 + share + written) * x)
        yield Launch("_gradient_sums", 0, (2 + mask) * x)
        yield Launch("_input_gradient", 0, (3 + share + mask) * x)
    else:
        yield Launch("BatchNorm, statistics", 0, x)
        yield Launch("BatchNorm", 0, 2 * x)
        yield Launch("ReLU and sum", 0, (2 + 3 * share) * x)
        yield Launch(MASK, 0, 3 * x)
        yield Launch("BatchNorm, gradient sums", 0, 2 * x)
        yield Launch(f"BatchNorm{BACK}", 0, 3 * x)


@lru_cache(maxsize=8)
def step_launches(case: Case, parts: Parts, steps: int = 10) -> tuple[Launch, ...]:
    """Return all launches of a PeerAiD step whose attack has `steps` steps; peer and student are alike."""
    network = build_model(case.model, case.classes).eval().to(memory_format=torch.channels_last)
    weights = sum(parameter.numel() for parameter in network.parameters())
    with FakeTensorMode(allow_non_fake_inputs=True):
        images = torch.empty(case.batch, 3, *case.sides).to(memory_format=torch.channels_last)
        found = eval_passes(network, images, parts)
    low = network.to(torch.bfloat16)
    with FakeTensorMode(allow_non_fake_inputs=True):
        batches = [images.to(torch.bfloat16), torch.cat([images, images]).to(torch.bfloat16)]
        trained = [
            launch
            for number, batch in enumerate(batches, 1)
            for launch in training_launches(low, batch, [number * each for each in found.sums], parts)
        ]
    return (
        *(steps * _attack_step(found.attack_step, size(images), parts)),
        *found.forward,
        *trained,
        *(2 * [Launch("_fold", 0, 6.0 * weights), Launch("SGD", 0, 20.0 * weights)]),
        Launch("loss_kernel", 0, 0),
    )


def _attack_step(launches: Sequence[Launch], images: float, parts: Parts) -> list[Launch]:
    """Return a step's launches with the update of the images, of so many bytes in float32."""
    if not (parts.stem_step and any(launch.kernel == "_back" for launch in launches)):
        return [*launches, Launch("_pgd_update", 0, 3.5 * images)]
    # It reads two images in float32 and writes one, in place of a gradient in bf16.
    more = {"_back": 2.5 * images}
    return [replace(one, bytes=one.bytes + more.get(one.kernel, 0.0)) for one in launches]
