"""A 3×3 convolution and all that surrounds it in a folded residual network, forward and back to its input."""

import torch
from torch import Tensor
from torch.nn import functional as F


def takes(x: Tensor, weight: Tensor) -> bool:
    """Tell whether the Triton kernel takes images, or a gradient map, with weights (O, I, 3, 3)."""
    layout = torch.channels_last
    return (
        x.dim() == weight.dim() == 4 and weight.shape[2:] == (3, 3)
        and x.dtype == weight.dtype and x.dtype in (torch.bfloat16, torch.float16)
        # The copy engine wants every row of a box to begin at a multiple of 16 bytes.
        and all(channels % 8 == 0 for channels in weight.shape[:2])
        and len(x) > 0 and all(side & (side - 1) == 0 for side in x.shape[2:])
        and x.is_contiguous(memory_format=layout) and weight.is_contiguous(memory_format=layout)
    )  # fmt: skip


def convolution(
    x: Tensor, weight: Tensor, bias: Tensor | None = None, residual: Tensor | None = None, relu: bool = False
) -> Tensor:
    """Return [relu](conv(x) [+ bias] [+ residual]), (B, O, H, W), rounded once to the dtype of `x`.

    Args:
        x: (B, I, H, W), any floating dtype.
        weight: (O, I, 3, 3), of the dtype of `x`; stride 1, one pixel of zeros around.
        bias: (O,), any floating dtype.
        residual: (B, O, H, W), any floating dtype.
        relu: let nothing below zero through.
    """
    exact = torch.promote_types(x.dtype, torch.float32)
    out = F.conv2d(x.to(exact), weight.to(exact), None if bias is None else bias.to(exact), padding=1)
    if residual is not None:
        out = out + residual.to(exact)
    return (torch.relu(out) if relu else out).to(x.dtype)


def convolution_input_gradient(
    gradient: Tensor, weight: Tensor, residual: Tensor | None = None, mask: Tensor | None = None
) -> Tensor:
    """Return the gradient at the input, (B, I, H, W), rounded once to the dtype of `gradient`.

    Args:
        gradient: at the convolution's result, (B, O, H, W), any floating dtype.
        weight: (O, I, 3, 3), of the dtype of `gradient`.
        residual: gradient that has come to the input on another way, (B, I, H, W), added.
        mask: what the ReLU before the convolution let through, (B, I, H, W): where it is not above zero, no
            gradient goes back.
    """
    exact = torch.promote_types(gradient.dtype, torch.float32)
    found = F.conv_transpose2d(gradient.to(exact), weight.to(exact), padding=1)
    if residual is not None:
        found = found + residual.to(exact)
    return (found if mask is None else torch.where(mask > 0, found, 0)).to(gradient.dtype)
