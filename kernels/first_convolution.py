"""The 3×3 convolution that reads the pixels, with bias and ReLU, and its gradient at the pixels."""

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from fastpeer.kernels.pgd_update import pgd_update

MOST_PIXEL_CHANNELS = 4
MOST_CHANNELS = 160
MOST_WIDTH = 256
"""The largest shapes that the Triton kernels take: channels of the images and of the result, and columns."""


def takes(images: Sequence[int], weight: Sequence[int]) -> bool:
    """Tell whether the Triton kernels take these shapes of images (B, C, H, W) and weights (O, C, 3, 3)."""
    batch, into, height, width = images
    out = weight[0]
    channels = 1 <= into <= MOST_PIXEL_CHANNELS and 16 <= out <= MOST_CHANNELS and out % 16 == 0
    # The last block's values, too, are numbered in 32 bits.
    numbered = 0 < batch * height * width * out < (1 << 31) - MOST_WIDTH * MOST_CHANNELS
    return channels and list(weight[1:]) == [into, 3, 3] and width <= MOST_WIDTH and numbered


def first_convolution(images: Tensor, weight: Tensor, bias: Tensor, relu: bool, dtype: torch.dtype) -> Tensor:
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
    """Return the gradient at the pixels, (B, C, H, W), rounded once to the dtype of `gradient`.

    Args:
        gradient: at the convolution's result, (B, O, H, W), any floating dtype.
        weight: (O, C, 3, 3), any floating dtype; rounded to that of `gradient` first.
    """
    exact = torch.promote_types(gradient.dtype, torch.float32)
    rounded = weight.to(gradient.dtype).to(exact)
    return F.conv_transpose2d(gradient.to(exact), rounded, padding=1).to(gradient.dtype)


def first_convolution_step(
    gradient: Tensor, weight: Tensor, adversarial: Tensor, images: Tensor, step_size: float, epsilon: float,
    nonfinite_count: Tensor | None = None,
) -> Tensor:  # fmt: skip
    """Return `pgd_update` of the adversarial images by `first_convolution_gradient`, (B, C, H, W).

    The arguments are those of these two functions.
    """
    found = first_convolution_gradient(gradient, weight)
    return pgd_update(adversarial, found, images, step_size, epsilon, nonfinite_count=nonfinite_count)[0]
