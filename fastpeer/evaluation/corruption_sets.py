"""Test images corrupted in many ways, as CIFAR-10-C lays them out: an .npy file for each, and labels.npy.

Each file holds five severities one after the other, all of the same images in the same order (Hendrycks and
Dietterich, ICLR 2019).
"""

import os
from collections.abc import Generator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import numpy as np
import torch

from fastpeer.data.stream import Batch
from fastpeer.errors import UserError, one_line, shown
from fastpeer.kernels.crop_and_flip import to_unit_range

SEVERITIES = 5
BENCHMARK = (
    "gaussian_noise", "shot_noise", "impulse_noise", "defocus_blur", "glass_blur", "motion_blur", "zoom_blur",
    "snow", "frost", "fog", "brightness", "contrast", "elastic_transform", "pixelate", "jpeg_compression",
)  # fmt: skip
"""Those that the benchmark's mean is over; CIFAR-10-C has four more, which are for tuning."""


@dataclass(frozen=True)
class CorruptionSet:
    """A folder of corrupted images.

    Attributes:
        folder: that holds them.
        names: of the corruptions: the benchmark's in its order, then all others by name.
        labels: int64 (N,), of the images of each severity.
        size: height and width in pixels.
    """

    folder: Path
    names: tuple[str, ...]
    labels: np.ndarray
    size: tuple[int, int]

    @property
    def missing(self) -> list[str]:
        """The benchmark's corruptions that the folder lacks."""
        return [name for name in BENCHMARK if name not in self.names]

    def file(self, name: str) -> Path:
        """Return a corruption's file."""
        return self.folder / f"{name}.npy"

    def images(self, name: str, severity: int, batch_size: int, device: torch.device) -> "CorruptedImages":
        """Return the images of a corruption in a severity, from 1 on, as a source of batches."""
        offset = _checked_images(self.file(name), len(self.labels), self.size)
        offset += (severity - 1) * len(self.labels) * 3 * self.size[0] * self.size[1]
        return CorruptedImages(self.file(name), offset, self.labels, self.size, batch_size, device)


def open_corruptions(folder: Path, classes: Sequence[str], size: tuple[int, int]) -> CorruptionSet:
    """Look at every file of a folder in CIFAR-10-C's layout, without reading the images.

    Args:
        folder: with labels.npy (5N integers) and an array (5N, H, W, 3) of uint8 for each corruption.
        classes: names of the classes, which the labels number.
        size: height and width that the images must have.

    Raises:
        UserError: a file is missing, cannot be read, or holds anything else.
    """
    if not folder.is_dir():
        raise UserError(f"--corruptions {folder}: no such folder; it must hold labels.npy and CORRUPTION.npy")
    found = {path.stem for path in folder.glob("*.npy")} - {"labels"}
    names = [*(name for name in BENCHMARK if name in found), *sorted(found - set(BENCHMARK))]
    labels = _read_labels(folder / "labels.npy", classes)
    if not names:
        raise UserError(
            f"{folder} holds no corruption: there must be files such as fog.npy beside labels.npy"
        )
    for name in names:
        _checked_images(folder / f"{name}.npy", len(labels), size)
    return CorruptionSet(folder, tuple(names), labels, size)


class CorruptedImages:
    """A `Source` of images that lie in a file one after the other, read batch by batch.

    Args:
        file: holds uint8 (N, H, W, 3).
        offset: in bytes, of the first image.
        labels: int64 (N,).
        size: H and W.
        batch_size: images in a batch; the last may have fewer.
        device: of the batches.
    """

    def __init__(
        self, file: Path, offset: int, labels: np.ndarray, size: tuple[int, int], batch_size: int,
        device: torch.device,
    ) -> None:  # fmt: skip
        self.file, self.offset, self.size = file, offset, size
        self.labels, self.batch_size, self.device = labels, batch_size, device

    def batches(self, order: np.ndarray, key: int | None, dtype: torch.dtype) -> Generator[Batch, None, None]:
        """Yield batches, see `fastpeer.data.stream.Source`; there is no augmentation."""
        with _opened(self.file) as file:
            for first in range(0, len(order), self.batch_size):
                chosen = order[first : first + self.batch_size]
                pixels = np.stack([self._image(file.fileno(), int(place)) for place in chosen])
                images = torch.from_numpy(pixels).to(self.device).permute(0, 3, 1, 2)
                labels = torch.from_numpy(self.labels[chosen]).to(self.device)
                yield Batch(to_unit_range(images, dtype), labels)

    def _image(self, file: int, place: int) -> np.ndarray:
        # Not mapped: reading beyond the end of a file that was cut short meanwhile would end the process.
        length = 3 * self.size[0] * self.size[1]
        content = os.pread(file, length, self.offset + place * length)
        if len(content) < length:
            raise UserError(f"{self.file}: cut short while it was read")
        return np.frombuffer(content, np.uint8).reshape(*self.size, 3)


def _opened(path: Path) -> BinaryIO:
    try:
        return path.open("rb")
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror})") from None


def _mapped(path: Path) -> np.memmap:
    """Map an array, which takes no object of Python's."""
    try:
        return np.lib.format.open_memmap(path, mode="r")
    except FileNotFoundError:
        raise UserError(f"{path} is missing") from None
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror or one_line(error)})") from None
    except (ValueError, EOFError, TypeError, SyntaxError, OverflowError) as error:
        raise UserError(f"{path}: must be an array of numbers in .npy form ({one_line(error)})") from None


def _read_labels(path: Path, classes: Sequence[str]) -> np.ndarray:
    """Return the labels (N,) that all severities share."""
    found = _mapped(path)
    if found.ndim != 1 or found.dtype.kind not in "iu":
        raise UserError(f"{path}: must be whole numbers (5N,), got {found.dtype} {shown(found.shape)}")
    count, rest = divmod(len(found), SEVERITIES)
    labels = np.array(found)
    if not count or rest or (labels.reshape(SEVERITIES, count) != labels[:count]).any():
        raise UserError(
            f"{path}: must hold the same labels five times, once for each severity, got {len(labels)} labels"
            " that are not"
        )
    if labels.min() < 0 or labels.max() >= len(classes):
        raise UserError(
            f"{path}: labels must be 0 to {len(classes) - 1}, of the data set's {len(classes)} classes, got"
            f" {labels.min()} to {labels.max()}"
        )
    return labels[:count].astype(np.int64)


def _checked_images(path: Path, count: int, size: tuple[int, int]) -> int:
    """Make sure that a file holds what it must; return where its pixels begin, in bytes."""
    found = _mapped(path)
    shape = (SEVERITIES * count, *size, 3)
    if found.dtype != np.uint8 or found.shape != shape or not found.flags.c_contiguous:
        order = "" if found.flags.c_contiguous else " in Fortran's order"
        raise UserError(
            f"{path}: must be uint8 {shape}, {SEVERITIES} severities of {count} images, got {found.dtype}"
            f" {shown(found.shape)}{order}"
        )
    return int(found.offset)
