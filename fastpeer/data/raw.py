"""Uncompressed images of one size from a .beton file, read with NumPy alone.

FFCV gives the same batches after compiling for seconds, has been unmaintained since May 2024, and cannot be
installed everywhere.
"""

from collections.abc import Generator
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from fastpeer.data.beton_file import Samples, common_size, map_samples
from fastpeer.errors import UserError
from fastpeer.kernels.crop_and_flip import augmented


class RawLoader:
    """Reads the samples of a .beton file in any order; see `fastpeer.data.loader.Loader`.

    Args:
        path: a file written by `fastpeer prep`.
        batch_size: samples in a batch; the last may have fewer.
        samples: of that file, where it has been mapped already.

    Raises:
        UserError: the file cannot be read (`map_samples`), or its images are compressed or of several sizes.
    """

    one_size = True

    def __init__(self, path: Path, batch_size: int, samples: Samples | None = None) -> None:
        self.path = path
        self.batch_size = batch_size
        self._samples = samples or map_samples(path)
        if not self._samples.all_raw:
            raise UserError(f"{path}: its images are compressed: read it with --data.reader ffcv")
        self._size = common_size(path, self._samples)
        self._starts = self._samples.images["pointer"].astype(np.int64)

    @property
    def labels(self) -> np.ndarray:
        """Labels of all samples, int64 (N,)."""
        return self._samples.labels

    def with_batch_size(self, batch_size: int) -> "RawLoader":
        """Return a loader of the same file with another batch size."""
        return RawLoader(self.path, batch_size, self._samples)

    def augmented(self, images: Tensor, indices: Tensor, key: int) -> Tensor:
        """Apply the whole augmentation; see `kernels.crop_and_flip.augmented`."""
        return augmented(images, indices, key)

    def batches(
        self, order: np.ndarray, key: int | None = None
    ) -> Generator[tuple[Tensor, Tensor], None, None]:
        """Yield batches, see `fastpeer.data.loader.Loader`; nothing is applied while decoding."""
        height, width = self._size
        # A view in which row i is the image that begins at byte i. NumPy's own indexing copies rows several
        # times faster than torch's, and than a loop over the images.
        images_at = np.lib.stride_tricks.sliding_window_view(self._samples.data, height * width * 3)
        for first in range(0, len(order), self.batch_size):
            chosen = order[first : first + self.batch_size].astype(np.int64)
            pixels = images_at[self._starts[chosen]].reshape(-1, height, width, 3)
            yield torch.from_numpy(pixels).permute(0, 3, 1, 2), torch.from_numpy(self.labels[chosen])
