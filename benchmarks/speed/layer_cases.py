"""The convolutions of networks that our kernel takes: their shapes, and each in several forms."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cache, partial
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from benchmarks.harness.measuring import sets_beyond_cache
from benchmarks.harness.record import Label
from benchmarks.speed.primitive_cases import DTYPES, Group, Item
from fastpeer.kernels.convolution import SIDES, STRIDES
from fastpeer.kernels.sign_bits import empty_signs, signs_of
from fastpeer.models import build_model

if TYPE_CHECKING:
    from fastpeer.kernels.convolution_tiles import Tile


@dataclass(frozen=True)
class Shape:
    """A convolution with padding side // 2.

    Attributes:
        side: of the window in pixels.
        stride: in both directions.
        into, out: channels.
        size: side of the images that it reads, in pixels.
    """

    side: int
    stride: int
    into: int
    out: int
    size: int

    def __str__(self) -> str:
        return f"{self.side}×{self.side} / {self.stride}, {self.into} to {self.out}, {self.size}×{self.size}"

    @property
    def usual(self) -> bool:
        """Whether it is 3×3 at stride 1."""
        return (self.side, self.stride) == (3, 1)

    def pixels(self, batch: int) -> tuple[int, int]:
        """Return the pixels of a batch before and behind it."""
        return batch * self.size**2, batch * (self.size // self.stride) ** 2

    def flop(self, batch: int) -> float:
        """Operations for a batch; the gradient at the input needs as many."""
        return 2.0 * self.pixels(batch)[1] * self.into * self.out * self.side**2

    def bytes_moved(self, batch: int, back: bool) -> int:
        """Return what forward (x, residual, y) or back (gradient, sum, mask, result) moves in 16 bits."""
        before, behind = self.pixels(batch)
        read = before // self.stride**2 if self.side == 1 else before
        if back:
            return 2 * (3 * before * self.into + behind * self.out)
        return 2 * (read * self.into + 2 * behind * self.out)


@cache
def shapes_of(model: str, size: int = 32) -> tuple[Shape, ...]:
    """Return the shapes of a network's convolutions that the kernel takes, each once, in their order."""
    with torch.device("meta"):
        network = build_model(model, 10).eval()
        found: dict[Shape, None] = {}

        def note(conv: nn.Module, inputs: tuple[Tensor, ...], out: Tensor) -> None:
            assert isinstance(conv, nn.Conv2d)
            shape = Shape(conv.kernel_size[0], conv.stride[0], *conv.weight.shape[1::-1], inputs[0].shape[2])
            if conv.groups == 1 and shape.side in SIDES and shape.stride in STRIDES and shape.into % 8 == 0:
                found[shape] = None

        for part in network.modules():
            if isinstance(part, nn.Conv2d):
                part.register_forward_hook(note)
        network(torch.empty(1, 3, size, size))
    return tuple(found)


@dataclass(frozen=True)
class Tensors:
    """What a layer is given, all of one layout and dtype but for the float32 bias and the signs of x."""

    x: Tensor
    weight: Tensor
    bias: Tensor
    y: Tensor
    like_x: Tensor
    signs: Tensor


def tensors_of(shape: Shape, batch: int, dtype: torch.dtype, device: torch.device) -> Tensors:
    """Draw the tensors of a layer, channels-last: like its input, weights, bias, like its result."""
    side = shape.size // shape.stride
    x, like_x = (_drawn((batch, shape.into, shape.size, shape.size), dtype, device) for _ in range(2))
    weight = _drawn((shape.out, shape.into, shape.side, shape.side), dtype, device)
    weight /= shape.side * shape.into**0.5
    y = _drawn((batch, shape.out, side, side), dtype, device)
    return Tensors(x, weight, torch.randn(shape.out, device=device), y, like_x, signs_of(x))


def _drawn(shape: tuple[int, ...], dtype: torch.dtype, device: torch.device) -> Tensor:
    return torch.randn(shape, device=device).to(dtype).contiguous(memory_format=torch.channels_last)


def layers(
    models: Sequence[str], batches: Sequence[int], dtypes: Sequence[str], device: torch.device
) -> Iterator[Group]:
    """Each network's convolutions of 1×1 or at stride 2, forward and back: a group for a layer and batch."""
    for model in models:
        for shape in shapes_of(model):
            for batch in batches:
                if not shape.usual:
                    yield lambda where=(model, shape), batch=batch: [  # type: ignore[misc]
                        item for dtype in dtypes for item in _layer(*where, batch, dtype, device)
                    ]


def _layer(model: str, shape: Shape, batch: int, dtype: str, device: torch.device) -> list[Item]:
    count = sets_beyond_cache(shape.bytes_moved(batch, back=True), device, most=16)
    sets = [tensors_of(shape, batch, DTYPES[dtype], device) for _ in range(count)]
    labels: dict[str, Label] = {"stage": f"{model}, {shape}", "batch": batch, "dtype": dtype}
    forms = _forms(shape) | (_own_forms(shape, device) if device.type == "cuda" else {})
    return [
        Item(f"{name}, {dtype}", labels, [partial(form, one) for one in sets], shape.flop(batch), dtype)
        for name, form in forms.items()
    ]


Form = Callable[[Tensors], object]


def _forms(shape: Shape) -> dict[str, Form]:
    """Return the library's convolution, alone and with what surrounds it by operators of PyTorch."""
    padding = shape.side // 2

    def forward(of: Tensors) -> Tensor:
        return F.conv2d(of.x, of.weight, None, shape.stride, padding)

    def back(of: Tensors) -> Tensor:
        settings = ([shape.stride] * 2, [padding] * 2, [1, 1], False, [0, 0], 1, [True, False, False])
        found: Tensor = torch.ops.aten.convolution_backward(of.y, of.x, of.weight, None, *settings)[0]
        return found

    return {
        "forward: convolution alone": forward,
        "back: convolution alone": back,
        "back: sum, mask apart": lambda of: torch.ops.aten.threshold_backward(back(of) + of.like_x, of.x, 0),
    }


def _own_forms(shape: Shape, device: torch.device) -> dict[str, Form]:
    """Our kernels: cuDNN with the epilogue behind it, and all in one, with the most promising tiles."""
    from fastpeer.kernels.convolution_tiles import tiles_of
    from fastpeer.kernels.fused.bias_sum_relu import bias_sum_relu

    def behind(of: Tensors) -> object:
        out = F.conv2d(of.x, of.weight, None, shape.stride, shape.side // 2)
        return bias_sum_relu(out, of.bias, of.y, relu=True)

    found: dict[str, Form] = {"forward: cuDNN, then Triton": behind}
    found["forward: Triton, signs kept"] = partial(keeping_signs, shape)
    found["back: Triton, mask of signs"] = partial(by_signs, shape)
    for tile in tiles_of(device)[:2]:
        found[f"forward: Triton, {tile}"] = partial(own_call, shape, False, tile)
        found[f"back: Triton, {tile}"] = partial(own_call, shape, True, tile)
    return found


def keeping_signs(shape: Shape, of: Tensors) -> Tensor:
    """Run our kernel forward, which also writes a bit for each value."""
    from fastpeer.kernels.fused.convolution import convolution

    signs = empty_signs(of.y.shape, of.y.device)
    return convolution(of.x, of.weight, of.bias, of.y, True, shape.stride, signs=signs)


def by_signs(shape: Shape, of: Tensors) -> Tensor:
    """Run our kernel back, with a bit of the mask for each value."""
    from fastpeer.kernels.fused.convolution import convolution_input_gradient

    return convolution_input_gradient(of.y, of.weight, of.like_x, of.signs, shape.stride)


def own_call(shape: Shape, back: bool, tile: "Tile | None", of: Tensors) -> Tensor:
    """Run our kernel with all that may surround a layer: forward residual, back residual and mask."""
    from fastpeer.kernels.fused.convolution import convolution, convolution_input_gradient

    if back:
        return convolution_input_gradient(of.y, of.weight, of.like_x, of.x, shape.stride, tile=tile)
    return convolution(of.x, of.weight, of.bias, of.y, True, shape.stride, tile=tile)
