"""The noise that an attack starts from, drawn from a counter."""

import math

import torch
from torch import Tensor

from fastpeer.kernels.counter_bits import random_bits, shifted


def gaussian_start(images: Tensor, std: float, key: Tensor) -> Tensor:
    """Return x + std·N(0, 1), unclamped, as TRADES and PeerAiD start.

    The noise of an element is a function of `key` and its place (b, c, h, w) alone: neither the memory
    format nor the size of the batch changes it.

    Args:
        images: (B, C, H, W), any floating dtype; half precisions are computed in float32.
        std: standard deviation of the noise.
        key: int64 (), on the device of `images`; another one gives other noise.

    Returns:
        (B, C, H, W), of the dtype and in the memory format of `images`.
    """
    dtype = torch.float64 if images.dtype == torch.float64 else torch.float32
    noise = _normal(random_bits(key, _places(images)), dtype)
    return (images.to(dtype) + std * noise).to(images.dtype)


def _places(images: Tensor) -> Tensor:
    """Count the elements in the order of (b, c, h, w), int64, in the memory format of `images`."""
    places = torch.arange(images.numel(), device=images.device).view(images.shape)
    # Changes nothing, but torch.compile computes with indices symbolically, without wrapping around.
    places = places & torch.iinfo(torch.int64).max
    return torch.empty_like(images, dtype=torch.int64).copy_(places)


def _normal(bits: Tensor, dtype: torch.dtype) -> Tensor:
    """Make a normal number of 64 random bits, after Box and Muller."""
    # The upper half plus one, so that the logarithm sees (0, 1], never 0.
    radius = (shifted(bits, 32) + 1).to(dtype) * 2.0**-32
    angle = (bits & 0xFFFFFFFF).to(dtype) * 2.0**-32
    return torch.sqrt(-2 * torch.log(radius)) * torch.cos(2 * math.pi * angle)
