"""Training images out of a data set: gathered, cropped, flipped, as numbers in [0, 1]."""

import torch
from torch import Tensor

from fastpeer.kernels.counter_bits import random_bits, shifted

PADDING = 4


def crop_and_flip(dataset: Tensor, indices: Tensor, key: int | None, dtype: torch.dtype) -> Tensor:
    """Gather images, augment them and turn them into numbers.

    Args:
        dataset: uint8 (N, H, W, 3).
        indices: int64 (B,), in [0, N), on the data set's device.
        key: from `counter_key`, see `augmented`; None: no augmentation.
        dtype: float32 or float64.

    Returns:
        (B, 3, H, W) in [0, 1], channels-last.
    """
    images = dataset[indices].permute(0, 3, 1, 2)
    return to_unit_range(images if key is None else augmented(images, indices, key), dtype)


def augmented(images: Tensor, indices: Tensor, key: int) -> Tensor:
    """Crop each image at random out of itself with 4 zero pixels around it, and flip half of them.

    What happens to a sample depends on `key` and its index alone, not on the batch it comes in.

    Args:
        images: uint8 (B, 3, H, W).
        indices: int64 (B,), the samples' numbers in the data set, on the images' device.
        key: 64 bits, such as `counter_key(seed, "augment", epoch)`.

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
    """Turn pixels 0..255 into [0, 1] (B, 3, H, W) of `dtype`, channels-last; no normalisation.

    Each is the double or float nearest to n/255.
    """
    # Divided by a tensor: by a number, CUDA would multiply with 1/255.
    divisor = torch.full((), 255, dtype=dtype, device=images.device)
    return images.to(dtype, memory_format=torch.channels_last).div_(divisor)
