"""A source of batches that are decoded on the host, again in each epoch."""

import os
from collections.abc import Generator
from contextlib import closing, suppress

import numpy as np
import torch

from fastpeer.data.loader import Loader
from fastpeer.data.prefetch import Decoded, uploader
from fastpeer.data.stream import Batch
from fastpeer.errors import UserError
from fastpeer.kernels.crop_and_flip import to_unit_range


class HostSource:
    """Decodes a split on the host in each epoch, and augments it on the device that computes.

    Args:
        loader: the split's loader.
        device: the device of the batches.
    """

    def __init__(self, loader: Loader, device: torch.device) -> None:
        self.loader = loader
        self.device = device
        self._upload = uploader(device, loader.batch_size)
        self._opened = loader.path.stat()

    @property
    def labels(self) -> np.ndarray:
        """Labels of all samples, int64 (N,)."""
        return self.loader.labels

    @property
    def batch_size(self) -> int:
        """Samples in a batch; the last may have fewer."""
        return self.loader.batch_size

    def batches(self, order: np.ndarray, key: int | None, dtype: torch.dtype) -> Generator[Batch, None, None]:
        """Yield batches, see `fastpeer.data.stream.Source`."""

        def prepare(decoded: Decoded) -> Batch:
            images = decoded.images
            if key is not None:
                images = self.loader.augmented(images, decoded.indices, key)
            return Batch(to_unit_range(images, dtype), decoded.labels)

        with (
            closing(self._decoded(order, key)) as decoded,
            closing(self._upload(decoded, prepare)) as batches,
        ):
            yield from batches

    def _decoded(self, order: np.ndarray, key: int | None) -> Generator[Decoded, None, None]:
        samples = torch.from_numpy(order.astype(np.int64))
        self._refuse_truncated()
        with closing(self.loader.batches(order, key)) as batches:
            for number, (images, labels) in enumerate(batches):
                indices = samples[number * self.batch_size :][: len(labels)]
                # FFCV reuses its memory. Images are copied when they are converted; labels may go into the
                # batch unconverted, and must be copied here.
                yield Decoded(images, labels.clone(), indices)
                self._refuse_truncated()

    def _refuse_truncated(self) -> None:
        """Refuse a file that has been cut short: it is mapped, and reading beyond its end ends the process.

        One that was replaced or removed is still mapped as it was.
        """
        path = self.loader.path
        with suppress(FileNotFoundError):
            now = path.stat()
            if os.path.samestat(now, self._opened) and now.st_size < self._opened.st_size:
                raise UserError(
                    f"{path}: cut short while it was read, it must have {self._opened.st_size} bytes, got"
                    f" {now.st_size}: prepare it again, then go on"
                )
