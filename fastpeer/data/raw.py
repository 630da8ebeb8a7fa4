"""Uncompressed images of one size from a .beton file, read with NumPy alone.

FFCV gives the same batches after compiling for seconds, has been unmaintained since May 2024, and cannot be
installed everywhere.
"""

import os
import weakref
from collections.abc import Generator
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from fastpeer.data.beton_file import Samples, common_size, map_samples
from fastpeer.data.loader import MappedLoader
from fastpeer.errors import UserError


class RawLoader(MappedLoader):
    """Reads the samples of a .beton file in any order; see `fastpeer.data.loader.Loader`.

    Args:
        path: a file written by `fastpeer prep`.
        batch_size: samples in a batch; the last may have fewer.
        samples: of that file, where it has been mapped already.

    Raises:
        UserError: the file cannot be read (`map_samples`), or its images are compressed or of several sizes.
    """

    def __init__(self, path: Path, batch_size: int, samples: Samples | None = None) -> None:
        super().__init__(path, batch_size, samples or map_samples(path))
        if not self._samples.all_raw:
            raise UserError(f"{path}: its images are compressed: read it with --data.reader auto")
        self._size = common_size(path, self._samples)
        self._starts = self._samples.images["pointer"].astype(np.int64)
        self._file = _OpenFile(path)

    def batches(
        self, order: np.ndarray, key: int | None = None
    ) -> Generator[tuple[Tensor, Tensor], None, None]:
        """Yield batches, see `fastpeer.data.loader.Loader`; nothing is applied while decoding."""
        height, width = self._size
        for first in range(0, len(order), self.batch_size):
            chosen = order[first : first + self.batch_size].astype(np.int64)
            pixels = np.empty((len(chosen), height * width * 3), np.uint8)
            for image, start in zip(pixels, self._starts[chosen].tolist(), strict=True):
                image[:] = self._file.read(start, len(image))
            images = torch.from_numpy(pixels.reshape(-1, height, width, 3)).permute(0, 3, 1, 2)
            yield images, torch.from_numpy(self.labels[chosen])


class _OpenFile:
    """A file that is read, not mapped: if a mapped one is cut short, reading it ends the process.

    One that is replaced or removed is still read as it was. It is closed with its last user.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._descriptor = os.open(path, os.O_RDONLY)
        weakref.finalize(self, os.close, self._descriptor)

    def read(self, start: int, count: int) -> np.ndarray:
        """Return bytes, uint8 (count,), from one on."""
        found = os.pread(self._descriptor, count, start)
        if len(found) < count:
            raise UserError(f"{self._path}: cut short while it was read: prepare it again, then go on")
        return np.frombuffer(found, np.uint8)
