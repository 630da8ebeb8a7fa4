"""`random_bits` for Triton kernels."""

import triton
import triton.language as tl

from fastpeer.kernels.counter_bits import FIRST, GOLDEN, SECOND

_GOLDEN, _FIRST, _SECOND = tl.constexpr(GOLDEN), tl.constexpr(FIRST), tl.constexpr(SECOND)


@triton.jit
def random_bits(key, indices):
    """64 random bits for each index, uint64: `fastpeer.kernels.counter_bits.random_bits`."""
    z = indices.to(tl.uint64) * _GOLDEN + key.to(tl.uint64)
    z = (z ^ (z >> 30)) * _FIRST
    z = (z ^ (z >> 27)) * _SECOND
    return z ^ (z >> 31)
