"""`uniform_l2_start` in Triton: a program for each image."""

import triton
import triton.language as tl
from torch import Tensor

from fastpeer.kernels.fused.counter_bits import random_bits
from fastpeer.kernels.fused.gaussian_start import normal
from fastpeer.kernels.fused.start import bits_at, noisy, store_noisy


def uniform_l2_start(images: Tensor, epsilon: float, key: Tensor, *, clamp: bool = False) -> Tensor:
    """Return x + noise in the L2 ball: `fastpeer.kernels.uniform_l2_start.uniform_l2_start` in one launch.

    Args:
        images: (B, C, H, W), any floating dtype, contiguous or channels-last.
        epsilon: radius of the ball.
        key: int64 (), on the device of `images`.
        clamp: whether to clamp the result to [0, 1].

    Returns:
        (B, C, H, W), of the dtype and in the memory format of `images`.

    Raises:
        KernelRefusal: another memory format, another dtype, or 2³¹ elements or more.
    """
    return noisy(_uniform_l2_start, images, epsilon, key, clamp, by_image=True)


@triton.jit
def _uniform_l2_start(
    images,  # [B, C, H, W] or [B, H, W, C]
    key,  # int64
    result,  # like images
    count,
    epsilon: tl.float64,
    CHANNELS: tl.constexpr,
    PLANE: tl.constexpr,
    CHANNELS_LAST: tl.constexpr,
    CLAMP: tl.constexpr,
    DTYPE: tl.constexpr,
    BLOCK: tl.constexpr,
):
    VALUES: tl.constexpr = CHANNELS * PLANE
    image = tl.program_id(0).to(tl.int64)
    begin, end = image * VALUES, (image + 1) * VALUES
    squares = tl.zeros((BLOCK,), DTYPE)
    for first in range(0, VALUES, BLOCK):
        places = begin + first + tl.arange(0, BLOCK)
        noise = normal(bits_at(key, places, CHANNELS, PLANE, CHANNELS_LAST), DTYPE)
        squares += tl.where(places < end, noise * noise, 0.0)
    norm = tl.sqrt(tl.sum(squares, axis=0))
    length = tl.full((), epsilon, DTYPE) * _length(key, image, VALUES, DTYPE)
    # Normal numbers are drawn again: they take less time than a launch, or than writing and reading them.
    for first in range(0, VALUES, BLOCK):
        places = begin + first + tl.arange(0, BLOCK)
        noise = normal(bits_at(key, places, CHANNELS, PLANE, CHANNELS_LAST), DTYPE)
        store_noisy(images, result, places, end, noise / norm * length, CLAMP)


@triton.jit
def _length(key, image, VALUES: tl.constexpr, DTYPE: tl.constexpr):
    DIGITS: tl.constexpr = 53 if DTYPE.primitive_bitwidth == 64 else 24
    bits = random_bits(tl.load(key), -1 - image)
    uniform = ((bits >> (64 - DIGITS)) + 1).to(DTYPE) * (1.0 / (1 << DIGITS))
    return tl.exp2(tl.log2(uniform) * (1.0 / VALUES)).to(DTYPE)
