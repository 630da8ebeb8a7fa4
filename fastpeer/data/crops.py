"""Which part of an image of any size the networks see: a random one in training, else the centre."""

import numpy as np
import torch
from torch import Tensor

from fastpeer.kernels.counter_bits import mixed, random_bits, shifted

CENTRE = 224 / 256
"""How much of the shorter side the centre is."""
RATIO = (3 / 4, 4 / 3)
"""Width to height of random parts."""
TRIES = 10


def centre_boxes(heights: np.ndarray, widths: np.ndarray) -> np.ndarray:
    """Return the centre square of each image, 7/8 of its shorter side.

    Args:
        heights: int64 (n,), in pixels.
        widths: likewise.

    Returns:
        int64 (n, 4): top, left, height, width.
    """
    side = np.maximum(1, (np.minimum(heights, widths) * CENTRE).astype(np.int64))
    return _centred(heights, widths, side, side)


def random_boxes(
    key: int, indices: np.ndarray, heights: np.ndarray, widths: np.ndarray, scale: tuple[float, float]
) -> np.ndarray:
    """Draw a part of each image: area within `scale`, log of its ratio within that of 3/4 to 4/3.

    As torchvision and FFCV do, but each is a function of `key`, the sample's index and its size alone.

    Args:
        key: 64 bits, such as `counter_key(seed, "augment", epoch)`.
        indices: int64 (n,), the samples' numbers in the data set.
        heights: int64 (n,), in pixels.
        widths: likewise.
        scale: smallest and largest part of the image's area.

    Returns:
        int64 (n, 4): top, left, height, width.
    """
    boxes = _largest_boxes(heights, widths)
    waiting = np.arange(len(indices))
    for attempt in range(TRIES):
        if len(waiting) == 0:
            break
        numbers = [_uniform(mixed(key, 4 * attempt + draw), indices[waiting]) for draw in range(4)]
        drawn, fits = _drawn(numbers, heights[waiting], widths[waiting], scale)
        boxes[waiting[fits]] = drawn[fits]
        waiting = waiting[~fits]
    return boxes


def flipped(images: Tensor, indices: Tensor, key: int) -> Tensor:
    """Mirror half of the images; which, depends on `key` and their indices alone.

    Args:
        images: uint8 (B, 3, H, W).
        indices: int64 (B,), the samples' numbers in the data set, on the images' device.
        key: 64 bits, such as `counter_key(seed, "augment", epoch)`.

    Returns:
        As `images`.
    """
    # The same bit that `augmented` flips images of one size by.
    flip = (random_bits(key, indices) & 1).bool()[:, None, None, None]
    return torch.where(flip, images.flip(3), images)


def _drawn(
    numbers: list[np.ndarray], heights: np.ndarray, widths: np.ndarray, scale: tuple[float, float]
) -> tuple[np.ndarray, np.ndarray]:
    """Turn four uniform numbers for each image into a box, and say which of them fit."""
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
    """Return the largest centred part of each image whose ratio is allowed."""
    height = np.minimum(heights, np.rint(widths / RATIO[0]).astype(np.int64))
    width = np.minimum(widths, np.rint(heights * RATIO[1]).astype(np.int64))
    return _centred(heights, widths, height, width)


def _centred(heights: np.ndarray, widths: np.ndarray, height: np.ndarray, width: np.ndarray) -> np.ndarray:
    return np.stack([(heights - height) // 2, (widths - width) // 2, height, width], axis=1)


def _uniform(key: int, indices: np.ndarray) -> np.ndarray:
    """Return a float64 in [0, 1) for each index."""
    bits = random_bits(key, torch.from_numpy(indices))
    uniform: np.ndarray = shifted(bits, 11).numpy() * 2.0**-53
    return uniform
