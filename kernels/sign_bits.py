"""Which values of a map are above zero, or which a ReLU lets through, as bits: a sixteenth of its bytes."""

from collections.abc import Sequence

import torch
from torch import Tensor


def empty_signs(shape: Sequence[int], device: torch.device) -> Tensor:
    """Return memory for the bits of a map of a shape (B, C, H, W): uint8 (B, H, W, C / 8)."""
    batch, channels, height, width = shape
    return torch.empty(batch, height, width, channels // 8, dtype=torch.uint8, device=device)


def packed(truths: Tensor) -> Tensor:
    """Return truths (B, C, H, W) as uint8 (B, H, W, C / 8): bit k of byte c of a pixel is channel 8 c + k."""
    batch, channels, height, width = truths.shape
    eights = truths.permute(0, 2, 3, 1).reshape(batch, height, width, channels // 8, 8)
    return torch.sum(eights << torch.arange(8, device=truths.device), dim=4).to(torch.uint8)


def unpacked(bits: Tensor) -> Tensor:
    """Return the truths (B, C, H, W) that `packed` has packed."""
    eights = (bits[..., None] >> torch.arange(8, device=bits.device)) & 1
    return eights.flatten(3).permute(0, 3, 1, 2) != 0


def signs_of(y: Tensor) -> Tensor:
    """Return which values of y (B, C, H, W) are above zero, `packed`."""
    return packed(y > 0)


def above_zero(mask: Tensor) -> Tensor:
    """Return truths (B, C, H, W): where a mask of that shape is above zero, or what `signs_of` has packed."""
    return unpacked(mask) if mask.dtype == torch.uint8 else mask > 0
