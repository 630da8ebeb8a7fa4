"""Convolutions of an attack on the CPU: oneDNN's, and matrix products where planes are small."""

from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional as F

from fastpeer.victims.convolution import PlainConvolutions
from fastpeer.victims.folding import FoldedConv2d

Way = Literal["forward", "back"]
SMALL_PLANE = 16
"""Up to so many pixels, one bf16 matrix product for all images is faster than oneDNN's row by row."""


def onednn_takes(dtype: torch.dtype) -> bool:
    """Whether oneDNN convolves in a dtype on this processor: bf16 needs AVX-512 or better."""
    if not torch.backends.mkldnn.is_available():  # type: ignore[no-untyped-call]
        return False
    if dtype == torch.bfloat16:
        return bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())
    return dtype == torch.float32


class OnednnConvolutions(PlainConvolutions):
    """Runs on weights that are laid out once for all steps of an attack.

    The input gradient at stride 1 is itself a convolution, with the kernels turned around. So is that of a
    depthwise convolution at any stride, with zeros between the gradient's pixels: there, oneDNN's own way
    back takes ten times as long.
    """

    def __init__(self) -> None:
        self._laid_out: dict[tuple[int, Way, torch.Size], Tensor] = {}

    def forget(self) -> None:
        """Lay out anew from now on."""
        self._laid_out.clear()

    def forward(self, conv: FoldedConv2d, x: Tensor, residual: Tensor | None, relu: bool) -> Tensor:
        """One call, whatever the epilogue."""
        padding, stride = conv.padding, conv.stride
        if _small(x, conv, padding):
            weight = self._rows(conv, "forward", x)
            return _product(x, weight, conv, padding, stride, conv.bias, residual, relu)
        weight = self._packed(conv, "forward", x, padding, stride, conv.groups)
        shape = (padding, stride, conv.dilation, conv.groups)
        return _convolution(x, weight, conv.bias, residual, shape, relu)

    def input_gradient(
        self, conv: FoldedConv2d, x: Tensor, gradient: Tensor, partial: Tensor | None
    ) -> Tensor:
        """One call at stride 1 without groups, and where each channel is a group."""
        padding = _turned_padding(conv)
        if padding is None:
            return super().input_gradient(conv, x, gradient, partial)
        stride = [1, 1]
        if _small(gradient, conv, padding):
            weight = self._rows(conv, "back", gradient)
            return _product(gradient, weight, conv, padding, stride, None, partial, False)
        gradient = _spread(gradient, conv, x)
        weight = self._packed(conv, "back", gradient, padding, stride, conv.groups)
        shape = (padding, stride, conv.dilation, conv.groups)
        return _convolution(gradient, weight, None, partial, shape, False)

    def _packed(
        self, conv: FoldedConv2d, way: Way, x: Tensor, padding: list[int], stride: list[int], groups: int
    ) -> Tensor:
        """Return weights in the blocked layout that oneDNN wants for images of this shape."""
        key = (id(conv), way, x.shape)
        if key not in self._laid_out:
            self._laid_out[key] = torch.ops.mkldnn._reorder_convolution_weight(
                _turned(conv, way).contiguous(memory_format=torch.channels_last),
                padding, stride, conv.dilation, groups, list(x.shape),
            )  # fmt: skip
        return self._laid_out[key]

    def _rows(self, conv: FoldedConv2d, way: Way, x: Tensor) -> Tensor:
        """Return weights as a matrix (kh·kw·in, out)."""
        key = (id(conv), way, x.shape)
        if key not in self._laid_out:
            weight = _turned(conv, way)
            self._laid_out[key] = weight.permute(2, 3, 1, 0).reshape(-1, len(weight)).contiguous()
        return self._laid_out[key]


def _turned(conv: FoldedConv2d, way: Way) -> Tensor:
    """Return the weights of the convolution that leads forward, or of the one that leads back."""
    if way == "forward":
        return conv.weight
    flipped = conv.weight.to(conv.result_dtype).flip(2, 3)
    return flipped if conv.groups > 1 else flipped.transpose(0, 1)


def _spread(gradient: Tensor, conv: FoldedConv2d, x: Tensor) -> Tensor:
    """Put zeros between the pixels of a strided convolution's gradient, and behind them what x has over."""
    (down, right), size = conv.stride, conv.weight.shape[2:]
    if (down, right) == (1, 1):
        return gradient
    sides = [
        side - d * (k - 1) + 2 * p
        for side, d, k, p in zip(x.shape[2:], conv.dilation, size, conv.padding, strict=True)
    ]
    wide = torch.empty(
        *gradient.shape[:2], *sides, dtype=gradient.dtype, memory_format=torch.channels_last
    ).zero_()
    height, width = gradient.shape[2:]
    wide[:, :, ::down, ::right][:, :, :height, :width] = gradient
    return wide


def _convolution(
    x: Tensor, weight: Tensor, bias: Tensor | None, added: Tensor | None,
    shape: tuple[list[int], list[int], list[int], int], relu: bool,
) -> Tensor:  # fmt: skip
    ops, groups = torch.ops.mkldnn, shape[3]
    if added is None:
        out: Tensor = ops._convolution_pointwise(x, weight, bias, *shape, "relu" if relu else "none", [], "")
        return out
    if groups > 1 or added.shape[2:].numel() == 1:
        # There, the operator for sums lacks some dtypes, and before PyTorch 2.13 planes of one pixel.
        return _finished(ops._convolution_pointwise(x, weight, bias, *shape, "none", [], ""), added, relu)
    # With a sum, the operator wants the bias in the images' dtype.
    bias = None if bias is None else bias.to(x.dtype)
    last = "relu" if relu else None
    out = ops._convolution_pointwise.binary(x, added, weight, bias, *shape, "add", 1.0, last, [], "")
    return out


def _finished(out: Tensor, added: Tensor | None, relu: bool) -> Tensor:
    """Add and rectify in place."""
    if added is not None:
        out += added
    return torch.relu_(out) if relu else out


def _product(
    x: Tensor, weight: Tensor, conv: FoldedConv2d, padding: list[int], stride: list[int],
    bias: Tensor | None, added: Tensor | None, relu: bool,
) -> Tensor:  # fmt: skip
    """Convolve as the product of all patches (B·H·W, kh·kw·in) with the weights."""
    (kh, kw), (dy, dx) = conv.weight.shape[2:], padding
    padded = F.pad(x, (dx, dx, dy, dy)).permute(0, 2, 3, 1)
    patches = padded.unfold(1, kh, stride[0]).unfold(2, kw, stride[1]).permute(0, 1, 2, 4, 5, 3)
    planes = patches.shape[:3]
    out = patches.reshape(-1, len(weight)) @ weight
    if bias is not None:
        out += bias
    return _finished(out.view(*planes, -1).permute(0, 3, 1, 2), added, relu)


def _small(x: Tensor, conv: FoldedConv2d, padding: list[int]) -> bool:
    """Tell whether the planes that come out are small, and the kernels spread over several pixels."""
    if x.dtype != torch.bfloat16:
        return False
    spread = conv.weight.shape[2:].numel() > 1 and conv.groups == 1 and conv.dilation == [1, 1]
    plane = x.shape[2] * x.shape[3] // (conv.stride[0] * conv.stride[1])
    return spread and plane <= SMALL_PLANE and min(padding) >= 0


def _turned_padding(conv: FoldedConv2d) -> list[int] | None:
    """Return the input gradient's padding as a convolution; None: it is no plain one."""
    depthwise = 1 < conv.groups == conv.weight.shape[0] and conv.weight.shape[1] == 1
    if not depthwise and (conv.groups > 1 or conv.stride != [1, 1]):
        return None
    size = conv.weight.shape[2:]
    padding = [d * (k - 1) - p for d, k, p in zip(conv.dilation, size, conv.padding, strict=True)]
    return padding if min(padding) >= 0 else None
