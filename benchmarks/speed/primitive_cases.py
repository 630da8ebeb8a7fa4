"""What a step is made of, each on its own: convolutions, what surrounds them, the stem, BatchNorm."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor
from torch.nn import functional as F

from benchmarks.harness.measuring import Call, sets_beyond_cache
from benchmarks.harness.record import Label

DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32}


@dataclass(frozen=True)
class Stage:
    """3×3 convolutions of a network's stage: channels in and out, and side of the image in pixels."""

    name: str
    channels: int
    size: int

    def flop(self, batch: int) -> float:
        """Operations of the convolution for a batch; each of its gradients needs as many."""
        return 2.0 * batch * self.size**2 * self.channels**2 * 9


STAGES = {
    "resnet18": (
        Stage("resnet18 stage 1", 64, 32),
        Stage("resnet18 stage 2", 128, 16),
        Stage("resnet18 stage 3", 256, 8),
        Stage("resnet18 stage 4", 512, 4),
    ),
    "wideresnet34x10": (
        Stage("wideresnet34x10 stage 1", 160, 32),
        Stage("wideresnet34x10 stage 2", 320, 16),
        Stage("wideresnet34x10 stage 3", 640, 8),
    ),
    "small": (Stage("small stage", 16, 8),),
}


@dataclass(frozen=True)
class Item:
    """One thing to measure beside others of its group.

    Attributes:
        name: what is done.
        labels: on what.
        calls: the same on several sets of inputs.
        flop: of a call; 0 where bytes count.
        dtype: in which it computes.
    """

    name: str
    labels: dict[str, Label]
    calls: Sequence[Call]
    flop: float
    dtype: str


Group = Callable[[], list[Item]]


def convolutions(
    stages: Sequence[Stage], batches: Sequence[int], dtypes: Sequence[str], device: torch.device
) -> Iterator[Group]:
    """Each stage's convolution forward and back, in each form and layout: a group for a stage and batch."""
    return _groups(_convolution, stages, batches, dtypes, device)


def _groups(
    items: Callable[[Stage, int, str, torch.device], list[Item]],
    stages: Sequence[Stage], batches: Sequence[int], dtypes: Sequence[str], device: torch.device,
) -> Iterator[Group]:  # fmt: skip
    """Yield what makes the items of all dtypes, for each stage and batch."""
    for stage in stages:
        for batch in batches:
            yield lambda stage=stage, batch=batch: [  # type: ignore[misc]
                item for dtype in dtypes for item in items(stage, batch, dtype, device)
            ]


def _convolution(stage: Stage, batch: int, dtype: str, device: torch.device) -> list[Item]:
    sets = [_tensors(stage, batch, DTYPES[dtype], device) for _ in range(_sets(stage, batch, device))]
    planes = [tuple(part.contiguous() for part in tensors) for tensors in sets]
    turned = _channels_last(sets[0][1].flip(2, 3).transpose(0, 1), DTYPES[dtype])
    labels: dict[str, Label] = {"stage": stage.name, "batch": batch, "dtype": dtype}
    kinds: dict[str, Sequence[Call]] = {
        "forward": [partial(F.conv2d, x, weight, padding=1) for x, weight, *_ in sets],
        "forward, NCHW": [partial(F.conv2d, x, weight, padding=1) for x, weight, *_ in planes],
        "input gradient": [_backward(tensors, [True, False, False]) for tensors in sets],
        "input gradient as a convolution": [
            partial(F.conv2d, gradient, turned, padding=1) for _, _, gradient, _ in sets
        ],
        "weight gradient": [_backward(tensors, [False, True, False]) for tensors in sets],
    }
    return [
        Item(f"{name}, {dtype}", labels, calls, stage.flop(batch), dtype) for name, calls in kinds.items()
    ]


def _backward(tensors: Sequence[Tensor], mask: list[bool]) -> Call:
    x, weight, gradient = tensors[:3]
    return lambda: torch.ops.aten.convolution_backward(
        gradient, x, weight, None, [1, 1], [1, 1], [1, 1], False, [0, 0], 1, mask
    )


def surroundings(
    stages: Sequence[Stage],
    batches: Sequence[int],
    dtypes: Sequence[str],
    compiled: bool,
    device: torch.device,
) -> Iterator[Group]:
    """Convolutions with all that surrounds them, forward and back: apart, compiled, in one kernel."""
    return _groups(partial(_surrounded, compiled), stages, batches, dtypes, device)


def _surrounded(compiled: bool, stage: Stage, batch: int, dtype: str, device: torch.device) -> list[Item]:
    sets = [_tensors(stage, batch, DTYPES[dtype], device) for _ in range(_sets(stage, batch, device))]
    labels: dict[str, Label] = {"stage": stage.name, "batch": batch, "dtype": dtype}
    kinds: dict[str, Callable[..., object]] = {
        "forward: convolution alone": lambda x, w, r, b: F.conv2d(x, w, padding=1),
        "forward: bias, sum, ReLU apart": _apart,
        "back: convolution alone": lambda x, w, r, b: _input_gradient(x, w),
        "back: sum, mask apart": _back_apart,
    }
    if compiled:
        kinds["forward: compiled"] = torch.compile(_apart, dynamic=False)
        kinds["back: compiled"] = torch.compile(_back_apart, dynamic=False)
    if device.type == "cuda":
        kinds |= _cudnn_forms()
    calls = {name: _bound(call, sets) for name, call in kinds.items()}
    if device.type == "cuda":
        calls |= _own_forms(sets)
    return [
        Item(f"{name}, {dtype}", labels, bound, stage.flop(batch), dtype)
        for name, bound in sorted(calls.items())
    ]


def _apart(x: Tensor, weight: Tensor, residual: Tensor, bias: Tensor) -> Tensor:
    """As a chain computes it by plain operators, the bias in float32."""
    out = F.conv2d(x, weight, padding=1) + bias.float().view(1, -1, 1, 1) + residual
    return torch.relu(out).to(x.dtype)


def _input_gradient(gradient: Tensor, weight: Tensor) -> Tensor:
    shape = ([1, 1], [1, 1], [1, 1], False, [0, 0], 1)
    found: Tensor = torch.ops.aten.convolution_backward(
        gradient, gradient, weight, None, *shape, [True, False, False]
    )[0]
    return found


def _back_apart(gradient: Tensor, weight: Tensor, mask: Tensor, bias: Tensor) -> Tensor:
    """Go back; the residual's gradient is as large as the mask, which stands in for it."""
    found: Tensor = torch.ops.aten.threshold_backward(_input_gradient(gradient, weight) + mask, mask, 0)
    return found


def _cudnn_forms() -> dict[str, Callable[..., object]]:
    shape = ([1, 1], [1, 1], [1, 1], 1)
    return {
        "forward: cuDNN, bias and ReLU in one": lambda x, w, r, b: torch.cudnn_convolution_relu(
            x, w, b, *shape
        ),
        "forward: cuDNN, bias, sum and ReLU in one": lambda x, w, r, b: torch.cudnn_convolution_add_relu(
            x, w, r, 1.0, b, *shape
        ),
    }


def _own_forms(sets: Sequence[tuple[Tensor, ...]]) -> dict[str, Sequence[Call]]:
    """Our kernels: cuDNN with the epilogue behind it, and all in one, with several tiles."""
    from fastpeer.kernels.convolution_tiles import TILES
    from fastpeer.kernels.fused.bias_sum_relu import bias_sum_relu
    from fastpeer.kernels.fused.convolution import convolution, convolution_input_gradient

    def behind(x: Tensor, w: Tensor, r: Tensor, b: Tensor) -> object:
        return bias_sum_relu(F.conv2d(x, w, padding=1), b.float(), r, relu=True)

    found: dict[str, Sequence[Call]] = {"forward: cuDNN, then Triton": _bound(behind, sets)}
    for tile in TILES:
        found[f"forward: Triton, {tile}"] = [
            partial(convolution, x, w, b, r, True, tile=tile) for x, w, r, b in sets
        ]
        found[f"back: Triton, {tile}"] = [
            partial(convolution_input_gradient, x, w, r, r, tile=tile) for x, w, r, _ in sets
        ]
    return found


def stems(batches: Sequence[int], dtypes: Sequence[str], size: int, device: torch.device) -> Iterator[Group]:
    """Forward and input gradient of a first convolution (64 channels), from 3 and from 8 padded channels."""
    for batch in batches:
        yield lambda batch=batch: [  # type: ignore[misc]
            item
            for dtype in dtypes
            for channels in (3, 8)
            for item in _stem(batch, size, channels, dtype, device)
        ]


def _stem(batch: int, size: int, channels: int, dtype: str, device: torch.device) -> list[Item]:
    kind = DTYPES[dtype]
    x = _channels_last(torch.rand(batch, channels, size, size, device=device), kind)
    weight = _channels_last(torch.randn(64, channels, 3, 3, device=device), kind)
    gradient = _channels_last(torch.randn(batch, 64, size, size, device=device), kind)
    labels: dict[str, Label] = {"stage": f"stem, {size}×{size}", "batch": batch, "dtype": dtype}

    def backward() -> object:
        return torch.ops.aten.convolution_backward(
            gradient, x, weight, None, [1, 1], [1, 1], [1, 1], False, [0, 0], 1, [True, False, False]
        )

    # What is needed is the gradient of three channels, however many are computed.
    flop = 2.0 * batch * size**2 * 64 * 3 * 9
    calls: dict[str, Call] = {
        f"forward, {channels} channels, {dtype}": lambda: F.conv2d(x, weight, padding=1),
        f"input gradient, {channels} channels, {dtype}": backward,
    }
    if device.type == "cuda" and channels == 3:
        calls |= _own_stem(x.float(), weight.float(), gradient, dtype)
    return [Item(name, labels, [call], flop, dtype) for name, call in calls.items()]


def _own_stem(x: Tensor, weight: Tensor, gradient: Tensor, dtype: str) -> dict[str, Call]:
    """Return a first layer on exact pixels with all that follows it: by cuDNN and Triton, by Triton alone."""
    from fastpeer.kernels.fused.bias_sum_relu import bias_sum_relu
    from fastpeer.kernels.fused.first_convolution import (
        first_convolution,
        first_convolution_gradient,
        first_convolution_step,
    )

    bias = torch.randn(len(weight), device=x.device)
    found: dict[str, Call] = {
        f"whole forward: cuDNN, then Triton, {dtype}": lambda: bias_sum_relu(
            F.conv2d(x, weight, padding=1), bias, None, relu=True
        ).to(gradient.dtype),
        f"whole forward: Triton, {dtype}": lambda: first_convolution(x, weight, bias, True, gradient.dtype),
    }
    found[f"input gradient and the attack's step: Triton, {dtype}"] = partial(
        first_convolution_step, gradient, weight, x, x, 2 / 255, 8 / 255
    )
    for stages in (1, 2, 3):
        found[f"input gradient: Triton, {stages} stages, {dtype}"] = partial(
            first_convolution_gradient, gradient, weight, stages
        )
    return found


def batchnorms(
    stages: Sequence[Stage],
    batches: Sequence[int],
    dtypes: Sequence[str],
    compiled: bool,
    device: torch.device,
) -> Iterator[Group]:
    """Train-mode BatchNorm and ReLU, forward and backward: PyTorch's choice of kernels, and compiled."""
    for stage in stages:
        for batch in batches:
            yield lambda stage=stage, batch=batch: [  # type: ignore[misc]
                item for dtype in dtypes for item in _batchnorm(stage, batch, dtype, compiled, device)
            ]


def _batchnorm(stage: Stage, batch: int, dtype: str, compiled: bool, device: torch.device) -> list[Item]:
    sets = [_tensors(stage, batch, DTYPES[dtype], device) for _ in range(_sets(stage, batch, device))]
    labels: dict[str, Label] = {"stage": stage.name, "batch": batch, "dtype": dtype}
    norm = torch.nn.BatchNorm2d(stage.channels, device=device)
    inputs = [(x.detach().requires_grad_(), gradient) for x, _, gradient, _ in sets]

    def forward(x: Tensor) -> Tensor:
        return F.relu(norm(x))

    kinds: dict[str, Callable[[Tensor], Tensor]] = {"eager": forward}
    if compiled:
        kinds["compiled"] = torch.compile(forward, dynamic=False)
    if device.type == "cuda":
        kinds["Triton"] = _norm_in_triton(norm)
    return [
        Item(f"BatchNorm, ReLU, {name}, {dtype}", labels, _trained(kind, inputs), 0, dtype)
        for name, kind in kinds.items()
    ]


def _norm_in_triton(norm: torch.nn.BatchNorm2d) -> Callable[[Tensor], Tensor]:
    from fastpeer.kernels.batch_norm import Running
    from fastpeer.kernels.fused import batch_norm
    from fastpeer.step.norm_function import normalised

    assert norm.running_mean is not None
    assert norm.running_var is not None
    running = Running(norm.running_mean, norm.running_var, 0.1, (0,))

    def forward(x: Tensor) -> Tensor:
        return normalised(batch_norm.KERNELS, x, 1, norm.weight, norm.bias, norm.eps, None, True, running)

    return forward


def _trained(forward: Callable[[Tensor], Tensor], inputs: Sequence[tuple[Tensor, Tensor]]) -> list[Call]:
    def call(x: Tensor, gradient: Tensor) -> object:
        return torch.autograd.grad(forward(x), x, gradient)

    return [lambda tensors=tensors: call(*tensors) for tensors in inputs]  # type: ignore[misc]


def _tensors(stage: Stage, batch: int, dtype: torch.dtype, device: torch.device) -> tuple[Tensor, ...]:
    """Input, weight, something like the output, and bias."""
    shape = (batch, stage.channels, stage.size, stage.size)
    x, like_output = (_channels_last(torch.randn(shape, device=device), dtype) for _ in range(2))
    weight = torch.randn(stage.channels, stage.channels, 3, 3, device=device) / (3 * stage.channels**0.5)
    return x, _channels_last(weight, dtype), like_output, torch.randn(stage.channels, device=device).to(dtype)


def _channels_last(tensor: Tensor, dtype: torch.dtype) -> Tensor:
    return tensor.to(dtype).contiguous(memory_format=torch.channels_last)


def _bound(
    call: Callable[[Tensor, Tensor, Tensor, Tensor], object], sets: Sequence[tuple[Tensor, ...]]
) -> list[Call]:
    return [lambda tensors=tensors: call(*tensors) for tensors in sets]  # type: ignore[misc]


def _sets(stage: Stage, batch: int, device: torch.device) -> int:
    return sets_beyond_cache(2 * 2 * batch * stage.channels * stage.size**2, device, most=16)
