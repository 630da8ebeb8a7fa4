"""Crops of images of many sizes: a random box in training, else the centre."""

import numpy as np
import torch
from torch import Tensor

from fastpeer.kernels.counter_bits import mixed, random_bits, shifted

CENTRE = 224 / 256
"""Side of the centre crop, as a share of the image's shorter side; usual for ImageNet."""
RATIO = (3 / 4, 4 / 3)
"""Smallest and largest ratio of width to height of a random box."""
TRIES = 10
"""Random boxes drawn for an image before the largest centred one is taken, as in torchvision."""


def boxes_of(
    key: int | None, indices: np.ndarray, heights: np.ndarray, widths: np.ndarray, scale: tuple[float, float]
) -> np.ndarray:
    """Return a random box in each image (`random_boxes`), or the centre (`centre_boxes`) without a key."""
    if key is None:
        return centre_boxes(heights, widths)
    return random_boxes(key, indices, heights, widths, scale)


def centre_boxes(heights: np.ndarray, widths: np.ndarray) -> np.ndarray:
    """Return the centre square of each image, 7/8 of its shorter side.

    Args:
        heights: heights of the images in pixels, int64 (n,).
        widths: widths of the images in pixels, int64 (n,).

    Returns:
        int64 (n, 4): top, left, height, width.
    """
    side = np.maximum(1, (np.minimum(heights, widths) * CENTRE).astype(np.int64))
    return _centred(heights, widths, side, side)


def random_boxes(
    key: int, indices: np.ndarray, heights: np.ndarray, widths: np.ndarray, scale: tuple[float, float]
) -> np.ndarray:
    """Draw a box in each image: its area uniform in `scale`, the log of its ratio uniform in log(3/4, 4/3).

    As torchvision's RandomResizedCrop and FFCV do, but each box is a function of `key`, the sample's index
    and its size alone.

    Args:
        key: 64 bits, such as `counter_key(seed, "augment", epoch)`.
        indices: indices of the samples in the data set, int64 (n,).
        heights: heights of the images in pixels, int64 (n,).
        widths: widths of the images in pixels, int64 (n,).
        scale: smallest and largest area of a box, as a share of the image's area.

    Returns:
        int64 (n, 4): top, left, height, width.
    """
    # Stays for images in which no drawn box fits.
    boxes = _largest_boxes(heights, widths)
    pending = np.arange(len(indices))
    for attempt in range(TRIES):
        if len(pending) == 0:
            break
        numbers = [_uniform(mixed(key, 4 * attempt + draw), indices[pending]) for draw in range(4)]
        drawn, fits = _draw_boxes(numbers, heights[pending], widths[pending], scale)
        boxes[pending[fits]] = drawn[fits]
        pending = pending[~fits]
    return boxes


def flipped(images: Tensor, indices: Tensor, key: int) -> Tensor:
    """Flip half of the images horizontally; which ones depends on `key` and their indices alone.

    Args:
        images: uint8 (B, 3, H, W).
        indices: indices of the samples in the data set, int64 (B,), on the images' device.
        key: 64 bits, such as `counter_key(seed, "augment", epoch)`.

    Returns:
        uint8 (B, 3, H, W).
    """
    # The same bit as in `kernels.crop_and_flip.augmented`, which flips images of one size.
    flip = (random_bits(key, indices) & 1).bool()[:, None, None, None]
    return torch.where(flip, images.flip(3), images)


def _draw_boxes(
    numbers: list[np.ndarray], heights: np.ndarray, widths: np.ndarray, scale: tuple[float, float]
) -> tuple[np.ndarray, np.ndarray]:
    """Turn four uniform numbers for each image into a box; return the boxes and which of them fit."""
    area = heights * widths * (scale[0] + (scale[1] - scale[0]) * numbers[0])
    low, high = np.log(RATIO)
    ratio = np.exp(low + (high - low) * numbers[1])
    width = np.rint(np.sqrt(area * ratio)).astype(np.int64)
    height = np.rint(np.sqrt(area / ratio)).astype(np.int64)
    top = (numbers[2] * (heights - height + 1)).astype(np.int64)
    left = (numbers[3] * (widths - width + 1)).astype(np.int64)
    fits = (width > 0) & (width <= widths) & (height > 0) & (height <= heights)
    return np.stack([top, left, height, width], axis=1), fits


def _largest_boxes(heights: np.ndarray, widths: np.ndarray) -> np.ndarray:
    """Return the largest centred box in each image with a ratio within `RATIO`."""
    height = np.minimum(heights, np.rint(widths / RATIO[0]).astype(np.int64))
    width = np.minimum(widths, np.rint(heights * RATIO[1]).astype(np.int64))
    return _centred(heights, widths, height, width)


def _centred(heights: np.ndarray, widths: np.ndarray, height: np.ndarray, width: np.ndarray) -> np.ndarray:
    return np.stack([(heights - height) // 2, (widths - width) // 2, height, width], axis=1)


def _uniform(key: int, indices: np.ndarray) -> np.ndarray:
    """Return a float64 in [0, 1) for each index."""
    # The upper 53 bits: as many as a float64 holds exactly.
    bits = random_bits(key, torch.from_numpy(indices))
    uniform: np.ndarray = shifted(bits, 11).numpy() * 2.0**-53
    return uniform
