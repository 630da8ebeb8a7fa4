"""`uniform_start` in Triton: one pass over the images."""

import triton
import triton.language as tl
from torch import Tensor

from fastpeer.kernels.fused.start import element_bits, noisy, store_noisy


def uniform_start(images: Tensor, epsilon: float, key: Tensor, *, clamp: bool = False) -> Tensor:
    """Return x + U(−ε, ε): `fastpeer.kernels.uniform_start.uniform_start` in one launch, to the last bit.

    Args:
        images: (B, C, H, W), any floating dtype, contiguous or channels-last.
        epsilon: half the width of the interval that the noise comes from.
        key: int64 (), on the device of `images`.
        clamp: whether to clamp the result to [0, 1].

    Returns:
        (B, C, H, W), of the dtype and in the memory format of `images`.

    Raises:
        KernelRefusal: another memory format, another dtype, or 2³¹ elements or more.
    """
    return noisy(_uniform_start, images, epsilon, key, clamp)


@triton.jit
def _uniform_start(
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
    DIGITS: tl.constexpr = 53 if DTYPE.primitive_bitwidth == 64 else 24
    UNIT: tl.constexpr = 1.0 / (1 << DIGITS)
    places, bits = element_bits(key, CHANNELS, PLANE, CHANNELS_LAST, BLOCK)
    # Signed, so that the shift keeps the sign.
    noise = ((bits.to(tl.int64) >> (63 - DIGITS)) | 1).to(DTYPE) * UNIT
    store_noisy(images, result, places, count, noise * tl.full((), epsilon, DTYPE), CLAMP)
