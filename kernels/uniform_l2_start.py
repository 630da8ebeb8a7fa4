"""Noise that is uniform in the L2 ball, drawn from a counter."""

import math

import torch
from torch import Tensor

from fastpeer.kernels.counter_bits import random_bits, shifted
from fastpeer.kernels.gaussian_start import normal
from fastpeer.kernels.start import noisy


def uniform_l2_start(images: Tensor, epsilon: float, key: Tensor, *, clamp: bool = False) -> Tensor:
    """Return x + noise that is uniform in the L2 ball of radius `epsilon`.

    Its direction is that of Gaussian noise, that of `gaussian_start` for the same key, and its length
    ε·u^(1/d), with u uniform in (0, 1] and d = C·H·W values of an image (Muller, Comm. ACM 1959). Nearly all
    of a ball of so many dimensions lies at its surface. The noise of an image is a function of `key` and its
    number in the batch alone: neither the memory format nor the size of the batch changes it.

    Args:
        images: (B, C, H, W), any floating dtype; half precisions are computed in float32.
        epsilon: radius of the ball.
        key: int64 (), on the device of `images`; another one gives other noise.
        clamp: whether to clamp the result to [0, 1].

    Returns:
        (B, C, H, W), of the dtype and in the memory format of `images`.
    """
    return noisy(images, key, lambda bits, dtype: epsilon * _in_unit_ball(bits, key, dtype), clamp)


def _in_unit_ball(bits: Tensor, key: Tensor, dtype: torch.dtype) -> Tensor:
    """Make points of the unit ball, (B, C, H, W), of 64 random bits for each value."""
    direction = normal(bits, dtype)
    norm: Tensor = torch.linalg.vector_norm(direction, dim=(1, 2, 3), keepdim=True)
    return direction / norm * _length(key, bits.shape, dtype)


def _length(key: Tensor, shape: torch.Size, dtype: torch.dtype) -> Tensor:
    """Draw a length in (0, 1] for each image, (B, 1, 1, 1)."""
    # Counted from -1 downwards: the values of the images have the other counters.
    bits = random_bits(key, ~torch.arange(shape[0], device=key.device)).view(-1, 1, 1, 1)
    digits = 53 if dtype == torch.float64 else 24
    uniform = (shifted(bits, 64 - digits) + 1).to(dtype) * 2.0**-digits
    return torch.exp2(torch.log2(uniform) * (1 / max(1, math.prod(shape[1:]))))
