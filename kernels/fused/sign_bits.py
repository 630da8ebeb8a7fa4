"""`packed` and `unpacked` for Triton kernels: truths as bits, eight channels in a byte."""

from collections.abc import Sequence

import torch
import triton
import triton.language as tl
from torch import Tensor

from fastpeer.kernels.refusal import require


def check_signs(signs: Tensor | None, shape: Sequence[int], device: torch.device, kernel: str) -> None:
    """Refuse signs that are not those of a map of a shape (B, C, H, W); see `kernels.sign_bits.empty_signs`.

    Raises:
        KernelRefusal: shape, dtype, memory format or device does not fit; it names the kernel.
    """
    if signs is None:
        return
    batch, channels, height, width = shape
    must = batch, height, width, channels // 8
    fits = signs.dtype == torch.uint8 and signs.shape == must and signs.is_contiguous()
    found = f"{signs.dtype} {tuple(signs.shape)} on {signs.device}"
    message = f"signs must be contiguous uint8 {must} on {device}, got {found}"
    require(fits and signs.device == device, kernel, message)


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
