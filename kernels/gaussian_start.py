"""The Gaussian noise that an attack starts from, drawn from a counter."""

import math

import torch
from torch import Tensor

from fastpeer.kernels.counter_bits import shifted
from fastpeer.kernels.start import noisy


def gaussian_start(images: Tensor, std: float, key: Tensor, *, clamp: bool = False) -> Tensor:
    """Return x + std·N(0, 1), as TRADES and PeerAiD start.

    The noise of an element is a function of `key` and its place (b, c, h, w) alone: neither the memory
    format nor the size of the batch changes it.

    Args:
        images: (B, C, H, W), any floating dtype; half precisions are computed in float32.
        std: standard deviation of the noise.
        key: int64 (), on the device of `images`; another one gives other noise.
        clamp: whether to clamp the result to [0, 1], which TRADES and PeerAiD do not.

    Returns:
        (B, C, H, W), of the dtype and in the memory format of `images`.
    """
    return noisy(images, key, lambda bits, dtype: std * normal(bits, dtype), clamp)


def normal(bits: Tensor, dtype: torch.dtype) -> Tensor:
    """Make a normal number of 64 random bits, after Box and Muller."""
    # The upper half plus one, so that the logarithm sees (0, 1], never 0.
    radius = (shifted(bits, 32) + 1).to(dtype) * 2.0**-32
    angle = (bits & 0xFFFFFFFF).to(dtype) * 2.0**-32
    return torch.sqrt(-2 * torch.log(radius)) * torch.cos(2 * math.pi * angle)
