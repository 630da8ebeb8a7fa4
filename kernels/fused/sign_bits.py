"""`packed` and `unpacked` for Triton kernels: truths as bits, eight channels in a byte."""

import triton
import triton.language as tl


@triton.jit
def packed(truths):
    """Pack truths (pixels, CHANNELS) into bytes (pixels, CHANNELS / 8), the first channel lowest."""
    eights = truths.to(tl.int32).reshape(truths.shape[0], truths.shape[1] // 8, 8)
    return tl.sum(eights << tl.arange(0, 8)[None, None, :], axis=2).to(tl.uint8)


@triton.jit
def unpacked(bits):
    """Return the truths that `packed` has packed."""
    eights = (bits.to(tl.int32)[:, :, None] >> tl.arange(0, 8)[None, None, :]) & 1
    return eights.reshape(bits.shape[0], bits.shape[1] * 8) != 0
