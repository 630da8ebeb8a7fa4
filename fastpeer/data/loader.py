"""What decodes a .beton file: NumPy (`raw.py`), FFCV's C functions (`threaded.py`) or FFCV (`beton.py`)."""

from collections.abc import Generator
from copy import copy
from pathlib import Path
from typing import Protocol, TypeVar

import numpy as np
from torch import Tensor

from fastpeer.data.beton_file import Samples
from fastpeer.kernels.crop_and_flip import augmented

Mapped = TypeVar("Mapped", bound="MappedLoader")


class Loader(Protocol):
    """Reads the samples of a .beton file in any order; all loaders give the same batches, bit for bit."""

    @property
    def path(self) -> Path:
        """The file."""

    @property
    def batch_size(self) -> int:
        """Samples in a batch; the last may have fewer."""

    @property
    def one_size(self) -> bool:
        """Whether decoded images are the same in each epoch, so that they can be kept on the device."""

    @property
    def labels(self) -> np.ndarray:
        """Labels of all samples, int64 (N,), from the file's metadata: no image is read."""

    def with_batch_size(self, batch_size: int) -> "Loader":
        """Return a loader of the same file with another batch size."""

    def augmented(self, images: Tensor, indices: Tensor, key: int) -> Tensor:
        """Apply the device's part of the augmentation, to uint8 images (B, 3, H, W)."""

    def batches(
        self, order: np.ndarray, key: int | None = None
    ) -> Generator[tuple[Tensor, Tensor], None, None]:
        """Yield images uint8 (B, 3, H, W), channels-last, and labels int64 (B,), in the given order.

        The memory of a batch may be reused for later ones: copy what must outlive the next batch.

        Args:
            order: indices of the samples (n,).
            key: 64-bit key of the augmentation, for the part applied while decoding; None: no augmentation.
        """


class MappedLoader:
    """What loaders share that find the samples in the mapped file themselves; see `Loader`.

    Args:
        path: the file.
        batch_size: samples in a batch; the last may have fewer.
        samples: of the file.
    """

    one_size = True

    def __init__(self, path: Path, batch_size: int, samples: Samples) -> None:
        self.path = path
        self.batch_size = batch_size
        self._samples = samples

    @property
    def labels(self) -> np.ndarray:
        """Labels of all samples, int64 (N,)."""
        return self._samples.labels

    def with_batch_size(self: Mapped, batch_size: int) -> Mapped:
        """Return a loader of the same file with another batch size, which shares all else."""
        other = copy(self)
        other.batch_size = batch_size
        return other

    def augmented(self, images: Tensor, indices: Tensor, key: int) -> Tensor:
        """Apply the whole augmentation; see `kernels.crop_and_flip.augmented`."""
        return augmented(images, indices, key)
