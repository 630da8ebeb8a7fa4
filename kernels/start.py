"""Noise that an attack starts from, drawn from a counter: what the Gaussian and the uniform start share."""

from collections.abc import Callable

import torch
from torch import Tensor

from fastpeer.kernels.counter_bits import random_bits


def noisy(images: Tensor, key: Tensor, noise: Callable[[Tensor, torch.dtype], Tensor], clamp: bool) -> Tensor:
    """Add noise to images, each element's a function of `key` and its place (b, c, h, w) alone.

    Args:
        images: (B, C, H, W), any floating dtype; half precisions are computed in float32.
        key: int64 (), on the device of `images`.
        noise: makes noise of 64 random bits, int64, in the dtype that it is given, float32 or float64.
        clamp: whether to clamp the result to [0, 1].

    Returns:
        (B, C, H, W), of the dtype and in the memory format of `images`.
    """
    dtype = torch.float64 if images.dtype == torch.float64 else torch.float32
    moved = images.to(dtype) + noise(random_bits(key, _places(images)), dtype)
    return (moved.clamp(0, 1) if clamp else moved).to(images.dtype)


def _places(images: Tensor) -> Tensor:
    """Count the elements in the order of (b, c, h, w), int64, in the memory format of `images`."""
    places = torch.arange(images.numel(), device=images.device).view(images.shape)
    # Changes nothing, but torch.compile computes with indices symbolically, without wrapping around.
    places = places & torch.iinfo(torch.int64).max
    return torch.empty_like(images, dtype=torch.int64).copy_(places)
