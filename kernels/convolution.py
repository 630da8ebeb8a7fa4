"""A convolution and all that surrounds it in a folded residual network, forward and back to its input."""

import torch
from torch import Tensor
from torch.nn import functional as F

from fastpeer.kernels.sign_bits import above_zero, signs_of

SIDES = (1, 3)
STRIDES = (1, 2)
"""Of the convolutions that the Triton kernel computes; around the image are side // 2 pixels of zeros."""
LONGEST_SIDE = 256
"""Of an image in pixels: the copy engine's boxes are no longer, and one holds a row."""
MOST_VALUES = 1 << 31
"""Of the images: places are numbered in 32 bits."""


def takes(x: Tensor, weight: Tensor, stride: int = 1, back: bool = False) -> bool:
    """Tell whether the Triton kernel takes images, or a gradient map, with weights (O, I, S, S).

    Args:
        x: images (B, I, H, W); `back`, the gradient at the convolution's result.
        weight: of the convolution; S must be 1 or 3.
        stride: of the convolution.
        back: leads back to the images, which are `stride` times as high and wide as x.
    """
    if x.dim() != 4 or weight.dim() != 4 or len(x) == 0:
        return False
    layout, side = torch.channels_last, weight.shape[2]
    return (
        side in SIDES and weight.shape[3] == side and stride in STRIDES
        and x.dtype == weight.dtype and x.dtype in (torch.bfloat16, torch.float16)
        # The copy engine wants every row of a box to begin at a multiple of 16 bytes; at stride 2, a row is
        # the channels of two neighbours, and no box may reach from one into the other.
        and all(channels % 8 == 0 for channels in weight.shape[:2]) and weight.shape[1] % (8 * stride) == 0
        and all(_fits(length * stride if back else length, stride) for length in x.shape[2:])
        and x.numel() * stride * stride < MOST_VALUES
        and x.is_contiguous(memory_format=layout) and weight.is_contiguous(memory_format=layout)
    )  # fmt: skip


def _fits(length: int, stride: int) -> bool:
    """Tell whether an image's side is a power of two from the stride to the longest."""
    return stride <= length <= LONGEST_SIDE and length & (length - 1) == 0


def convolution(
    x: Tensor, weight: Tensor, bias: Tensor | None = None, residual: Tensor | None = None, relu: bool = False,
    stride: int = 1, *, signs: Tensor | None = None,
) -> Tensor:  # fmt: skip
    """Return [relu](conv(x) [+ bias] [+ residual]), (B, O, H', W'), rounded once to the dtype of `x`.

    Args:
        x: (B, I, H, W), any floating dtype.
        weight: (O, I, S, S), of the dtype of `x`, S odd; around the images are S // 2 pixels of zeros.
        bias: (O,), any floating dtype.
        residual: (B, O, H', W'), any floating dtype.
        relu: let nothing below zero through.
        stride: of the convolution: H' = ⌈H / stride⌉.
        signs: uint8 (B, H', W', O / 8), overwritten with the `signs_of` the result.
    """
    exact = torch.promote_types(x.dtype, torch.float32)
    wide_bias = None if bias is None else bias.to(exact)
    out = F.conv2d(x.to(exact), weight.to(exact), wide_bias, stride, padding=weight.shape[2] // 2)
    if residual is not None:
        out = out + residual.to(exact)
    result = (torch.relu(out) if relu else out).to(x.dtype)
    if signs is not None:
        signs.copy_(signs_of(result))
    return result


def convolution_input_gradient(
    gradient: Tensor, weight: Tensor, residual: Tensor | None = None, mask: Tensor | None = None,
    stride: int = 1,
) -> Tensor:  # fmt: skip
    """Return the gradient at the input, (B, I, H, W), rounded once to the dtype of `gradient`.

    Args:
        gradient: at the convolution's result, (B, O, H', W'), any floating dtype.
        weight: (O, I, S, S), of the dtype of `gradient`; see `convolution`.
        residual: gradient that has come to the input on another way, (B, I, H, W), added.
        mask: what the ReLU before the convolution let through, (B, I, H, W), or its signs (`signs_of`): where
            it is not above zero, no gradient goes back.
        stride: of the convolution: the input is H = stride · H' high and as many times as wide.
    """
    exact = torch.promote_types(gradient.dtype, torch.float32)
    found = F.conv_transpose2d(
        gradient.to(exact), weight.to(exact), None, stride, weight.shape[2] // 2, output_padding=stride - 1
    )
    if residual is not None:
        found = found + residual.to(exact)
    return (found if mask is None else torch.where(above_zero(mask), found, 0)).to(gradient.dtype)
