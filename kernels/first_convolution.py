"""The 3×3 convolution that reads the pixels, with bias and ReLU, and its gradient at the pixels."""

import torch
from torch import Tensor
from torch.nn import functional as F


def first_convolution(
    images: Tensor, weight: Tensor, bias: Tensor, relu: bool, dtype: torch.dtype
) -> Tensor:
    """Return [relu](conv(images) + bias), (B, O, H, W), computed in the images' dtype and rounded once.

    Args:
        images: (B, C, H, W), float32 or float64: rounding pixels would erase an attack's perturbation.
        weight: (O, C, 3, 3), of the images' dtype; stride 1, one pixel of zeros around.
        bias: (O,), of the images' dtype.
        relu: let nothing below zero through; NaN stays.
        dtype: of the result.
    """
    out = F.conv2d(images, weight, bias, padding=1)
    return (torch.relu(out) if relu else out).to(dtype)


def first_convolution_gradient(gradient: Tensor, weight: Tensor) -> Tensor:
    """Return the gradient at the pixels, (B, C, H, W), summed up exactly and rounded once to `gradient`'s dtype.

    Args:
        gradient: at the convolution's result, (B, O, H, W), any floating dtype.
        weight: (O, C, 3, 3), any floating dtype; rounded to that of `gradient` first.
    """
    exact = torch.promote_types(gradient.dtype, torch.float32)
    rounded = weight.to(gradient.dtype).to(exact)
    return F.conv_transpose2d(gradient.to(exact), rounded, padding=1).to(gradient.dtype)
