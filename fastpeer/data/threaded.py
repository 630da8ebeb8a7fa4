"""JPEGs from a .beton file, decoded by FFCV's C functions in threads of ours.

FFCV's own pipelines (`beton.py`) give the same batches; numba compiles them for seconds at each start.
"""

from collections.abc import Generator
from contextlib import closing
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from fastpeer.data.beton_file import Samples, common_size, map_samples, require_jpegs
from fastpeer.data.crops import boxes_of, flipped
from fastpeer.data.decoding_threads import DecodingThreads
from fastpeer.data.jpeg_decoder import JpegDecoder, ffcv_library
from fastpeer.data.loader import MappedLoader


class ThreadedLoader(MappedLoader):
    """Reads images of one size, some or all of them JPEGs; see `fastpeer.data.loader.Loader`.

    Args:
        path: a .beton file.
        batch_size: samples in a batch; the last may have fewer.
        samples: of that file, where it has been mapped already.

    Raises:
        UserError: FFCV's library is not there, or the file cannot be read (`map_samples`), or has images of
            several sizes.
    """

    def __init__(self, path: Path, batch_size: int, samples: Samples | None = None) -> None:
        library = ffcv_library(path)
        super().__init__(path, batch_size, samples or map_samples(path))
        size = common_size(path, self._samples)
        self._threads = DecodingThreads(JpegDecoder(library, path, self._samples), size)

    def batches(
        self, order: np.ndarray, key: int | None = None
    ) -> Generator[tuple[Tensor, Tensor], None, None]:
        """Yield batches, see `fastpeer.data.loader.Loader`; the memory of a batch is reused."""
        samples = order.astype(np.int64)
        with closing(self._threads.batches(samples, self._boxes(samples, key), self.batch_size)) as decoded:
            for number, images in enumerate(decoded):
                chosen = samples[number * self.batch_size :][: len(images)]
                yield torch.from_numpy(images).permute(0, 3, 1, 2), torch.from_numpy(self.labels[chosen])

    def _boxes(self, samples: np.ndarray, key: int | None) -> np.ndarray | None:
        """Return the crops of samples; images of one size are not cropped while decoding."""
        return None


class ThreadedCropLoader(ThreadedLoader):
    """Decodes JPEGs of many sizes and resizes a crop of each to one size, as `JpegLoader` does.

    Args:
        path: a file written by `fastpeer prep --jpeg`.
        batch_size: samples in a batch; the last may have fewer.
        side: height and width of the decoded images, in pixels.
        scale: smallest and largest area of a training crop, as a share of the image's area.

    Raises:
        UserError: FFCV's library is not there, or the file cannot be read (`map_samples`), or has images
            other than JPEGs.
    """

    one_size = False

    def __init__(self, path: Path, batch_size: int, side: int, scale: tuple[float, float]) -> None:
        library = ffcv_library(path)
        # Not as the other threaded loader: its decoder keeps the images' size.
        MappedLoader.__init__(self, path, batch_size, require_jpegs(path, map_samples(path)))
        self._scale = scale
        self._threads = DecodingThreads(JpegDecoder(library, path, self._samples, side), (side, side))

    def augmented(self, images: Tensor, indices: Tensor, key: int) -> Tensor:
        """Flip half of the images; their random crops were taken while decoding."""
        return flipped(images, indices, key)

    def _boxes(self, samples: np.ndarray, key: int | None) -> np.ndarray:
        heights, widths = (
            self._samples.images[name][samples].astype(np.int64) for name in ("height", "width")
        )
        return boxes_of(key, samples, heights, widths, self._scale)
