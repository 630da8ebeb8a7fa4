"""Random crop and horizontal flip, on the device that holds the images, from a counter."""

import torch
from torch import Tensor

from fastpeer.data.counter import random_bits, shifted

PADDING = 4


def crop_and_flip(images: Tensor, indices: Tensor, key: int) -> Tensor:
    """Crop each image at random out of itself with 4 zero pixels around it, and flip half of them.

    What happens to a sample depends on `key` and its index alone, not on the batch it comes in.

    Args:
        images: uint8 (B, 3, H, W).
        indices: int64 (B,), the samples' numbers in the data set, on the images' device.
        key: from `counter_key(seed, "augment", epoch)`.

    Returns:
        uint8 (B, 3, H, W), channels-last.
    """
    bits = random_bits(key, indices)
    flip = (bits & 1).bool()[:, None]
    top = (shifted(bits, 1) & 0xFFFFF) % (2 * PADDING + 1)
    left = (shifted(bits, 21) & 0xFFFFF) % (2 * PADDING + 1)
    across = torch.arange(images.shape[3], device=images.device)
    rows = top[:, None] + torch.arange(images.shape[2], device=images.device)
    columns = left[:, None] + torch.where(flip, across.flip(0), across)
    padded = torch.nn.functional.pad(images, (PADDING,) * 4).permute(0, 2, 3, 1)
    sample = torch.arange(len(images), device=images.device)[:, None, None]
    return padded[sample, rows[:, :, None], columns[:, None, :]].permute(0, 3, 1, 2)


def to_unit_range(images: Tensor, dtype: torch.dtype) -> Tensor:
    """Turn pixels 0..255 into [0, 1] (B, 3, H, W) of `dtype`, channels-last; no normalisation."""
    # A division, not a product with 1/255: the result is the double or float nearest to n/255.
    return images.to(dtype, memory_format=torch.channels_last).div_(255)
