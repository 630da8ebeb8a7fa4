"""`gaussian_start` in Triton: one pass over the images."""

import math

import triton
import triton.language as tl
from torch import Tensor

from fastpeer.kernels.fused.start import element_bits, noisy, store_noisy

_UNIT = tl.constexpr(2.0**-32)
_TURN = tl.constexpr(2 * math.pi)


def gaussian_start(images: Tensor, std: float, key: Tensor, *, clamp: bool = False) -> Tensor:
    """Return x + std·N(0, 1): `fastpeer.kernels.gaussian_start.gaussian_start` in one launch.

    Args:
        images: (B, C, H, W), any floating dtype, contiguous or channels-last.
        std: standard deviation of the noise.
        key: int64 (), on the device of `images`.
        clamp: whether to clamp the result to [0, 1].

    Returns:
        (B, C, H, W), of the dtype and in the memory format of `images`.

    Raises:
        KernelRefusal: another memory format, another dtype, or 2³¹ elements or more.
    """
    return noisy(_gaussian_start, images, std, key, clamp)


@triton.jit
def _gaussian_start(
    images,  # [B, C, H, W] or [B, H, W, C]
    key,  # int64
    result,  # like images
    count,
    std: tl.float64,
    CHANNELS: tl.constexpr,
    PLANE: tl.constexpr,
    CHANNELS_LAST: tl.constexpr,
    CLAMP: tl.constexpr,
    DTYPE: tl.constexpr,
    BLOCK: tl.constexpr,
):
    places, bits = element_bits(key, CHANNELS, PLANE, CHANNELS_LAST, BLOCK)
    store_noisy(images, result, places, count, normal(bits, DTYPE) * tl.full((), std, DTYPE), CLAMP)


@triton.jit
def normal(bits, DTYPE: tl.constexpr):
    """Make normal numbers of 64 random bits each: `fastpeer.kernels.gaussian_start.normal`."""
    radius = ((bits >> 32) + 1).to(DTYPE) * _UNIT
    turns = (bits & 0xFFFFFFFF).to(DTYPE) * _UNIT
    return tl.sqrt(-2 * tl.log(radius)) * _cosine(turns, TERMS=12 if turns.dtype == tl.float64 else 7)


@triton.jit
def _cosine(turns, TERMS: tl.constexpr):
    # cos(2π·turns) for turns in [0, 1], without tl.cos's branch for large arguments: it is the sine of an
    # angle within ±π/2, where sin x = x(1 − x²/(2·3)·(1 − x²/(4·5)·(…))) converges fast.
    angle = _TURN * (tl.abs(turns - 0.5) - 0.25)
    square = angle * angle
    series = tl.full(turns.shape, 1.0, turns.dtype)
    for term in tl.static_range(TERMS, 0, -1):
        series = 1.0 - square * series * (1.0 / (2 * term * (2 * term + 1)))
    return angle * series
