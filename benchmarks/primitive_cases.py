"""What a step is made of, each on its own: convolutions, epilogues, the stem's gradient, BatchNorm."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from harness.record import Label
from harness.replay import Call, sets_beyond_cache

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
    """Forward, input gradient and weight gradient of each stage: a group for a stage and batch."""
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
    labels: dict[str, Label] = {"stage": stage.name, "batch": batch, "dtype": dtype}

    def backward(one: tuple[Tensor, ...], mask: list[bool]) -> Call:
        x, weight, gradient, _ = one
        return lambda: torch.ops.aten.convolution_backward(
            gradient, x, weight, None, [1, 1], [1, 1], [1, 1], False, [0, 0], 1, mask
        )

    kinds: dict[str, Sequence[Call]] = {
        "forward": [lambda one=one: F.conv2d(one[0], one[1], padding=1) for one in sets],  # type: ignore[misc]
        "input gradient": [backward(one, [True, False, False]) for one in sets],
        "weight gradient": [backward(one, [False, True, False]) for one in sets],
    }
    return [
        Item(f"{name}, {dtype}", labels, calls, stage.flop(batch), dtype) for name, calls in kinds.items()
    ]


def epilogues(
    stages: Sequence[Stage], batches: Sequence[int], dtypes: Sequence[str], device: torch.device
) -> Iterator[Group]:
    """Bias, residual and ReLU in cuDNN's epilogue, and after the convolution."""
    return _groups(_epilogue, stages, batches, dtypes, device)


def _epilogue(stage: Stage, batch: int, dtype: str, device: torch.device) -> list[Item]:
    sets = [_tensors(stage, batch, DTYPES[dtype], device) for _ in range(_sets(stage, batch, device))]
    labels: dict[str, Label] = {"stage": stage.name, "batch": batch, "dtype": dtype}
    shape = ([1, 1], [1, 1], [1, 1], 1)
    kinds: dict[str, Callable[[Tensor, Tensor, Tensor, Tensor], object]] = {
        "conv, bias": lambda x, w, r, b: F.conv2d(x, w, b, padding=1),
        "conv, bias, ReLU apart": lambda x, w, r, b: F.conv2d(x, w, b, padding=1).relu_(),
        "conv, bias, sum, ReLU apart": lambda x, w, r, b: F.conv2d(x, w, b, padding=1).add_(r).relu_(),
    }
    if device.type == "cuda":
        kinds |= {
            "conv-bias-ReLU in one": lambda x, w, r, b: torch.cudnn_convolution_relu(x, w, b, *shape),
            "conv-bias-sum-ReLU in one": lambda x, w, r, b: torch.cudnn_convolution_add_relu(
                x, w, r, 1.0, b, *shape
            ),
        }
    return [
        Item(f"{name}, {dtype}", labels, _bound(call, sets), stage.flop(batch), dtype)
        for name, call in kinds.items()
    ]


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
    return [
        Item(
            f"forward, {channels} channels, {dtype}",
            labels,
            [lambda: F.conv2d(x, weight, padding=1)],
            flop,
            dtype,
        ),
        Item(f"input gradient, {channels} channels, {dtype}", labels, [backward], flop, dtype),
    ]


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
    return [
        Item(f"BatchNorm, ReLU, {name}, {dtype}", labels, _trained(kind, inputs), 0, dtype)
        for name, kind in kinds.items()
    ]


def _trained(forward: Callable[[Tensor], Tensor], inputs: Sequence[tuple[Tensor, Tensor]]) -> list[Call]:
    def call(x: Tensor, gradient: Tensor) -> object:
        return torch.autograd.grad(forward(x), x, gradient)

    return [lambda one=one: call(*one) for one in inputs]  # type: ignore[misc]


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
    return [lambda one=one: call(*one) for one in sets]  # type: ignore[misc]


def _sets(stage: Stage, batch: int, device: torch.device) -> int:
    return sets_beyond_cache(2 * 2 * batch * stage.channels * stage.size**2, device, most=16)
