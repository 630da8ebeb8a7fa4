"""Uncompressed images of one size from a .beton file, read with NumPy alone.

FFCV gives the same batches after compiling for seconds, has been unmaintained since May 2024, and cannot be
installed everywhere.
"""

from collections.abc import Generator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from fastpeer.errors import UserError, one_line
from fastpeer.kernels.crop_and_flip import augmented

VERSION = 2
"""Of the format, in FFCV 1.0."""
HEADER = np.dtype(
    [
        ("version", "<u2"), ("fields", "<u2"), ("page_size", "<u4"), ("samples", "<u8"),
        ("allocations", "<u8"),
    ],
    align=True,
)  # fmt: skip
FIELD = np.dtype([("kind", "u1"), ("name", "S16"), ("arguments", "u1", 1024)])
"""Follows the header, once for each field of a sample."""
INTEGER, IMAGE = 1, 2
RAW = 1
"""Mode of an image that is stored as its pixels, rows first, RGB; 0 is JPEG."""
_IMAGE_ROW = np.dtype([("mode", "u1"), ("width", "<u2"), ("height", "<u2"), ("pointer", "<u8")])
_BYTES_ROW = np.dtype([("pointer", "<u8"), ("size", "<u8")])
ROWS = {0: "<f8", INTEGER: "<i8", IMAGE: _IMAGE_ROW, 3: _BYTES_ROW, 4: "<u8", 5: _BYTES_ROW, 6: "<u8"}
"""What a sample's row of metadata holds of each kind of field."""


@dataclass(frozen=True)
class Samples:
    """Where the samples of a .beton file lie.

    Attributes:
        data: the file's bytes, mapped into memory.
        images: mode, width, height and pointer of each image, structured (N,).
        labels: int64 (N,).
    """

    data: np.ndarray
    images: np.ndarray
    labels: np.ndarray

    @property
    def all_raw(self) -> bool:
        """Whether all images are stored as their pixels."""
        return bool((self.images["mode"] == RAW).all())


def map_samples(path: Path) -> Samples:
    """Map a .beton file into memory and find its fields `image` and `label`; others may stand beside them.

    Raises:
        UserError: the file is none of FFCV 1.0's, lacks these fields, or is empty.
    """
    try:
        # Copied on write: torch warns of memory that cannot be written.
        return _parsed(np.asarray(np.memmap(path, np.uint8, "c")))
    except (ValueError, KeyError, OverflowError) as error:
        raise UserError(
            f"{path}: not a .beton file that fastpeer can read ({one_line(error)}); run fastpeer prep again"
        ) from None


def _parsed(data: np.ndarray) -> Samples:
    header = np.frombuffer(data, HEADER, 1)[0]
    if header["version"] != VERSION:
        raise ValueError(f"its format must have version {VERSION}, got {header['version']}")
    fields = np.frombuffer(data, FIELD, int(header["fields"]), HEADER.itemsize)
    names, kinds = fields["name"].tolist(), fields["kind"].tolist()
    found = dict(zip(names, kinds, strict=True))
    if found.get(b"image") != IMAGE or found.get(b"label") != INTEGER:
        raise ValueError("its samples must have an image and an integer label")
    unknown = set(found.values()) - ROWS.keys()
    if unknown:
        raise ValueError(f"it has a field of unknown kind {min(unknown)}")
    # Unnamed, as FFCV does it: NumPy numbers them, and aligns each to its type.
    row = np.dtype([("", ROWS[kind]) for kind in kinds], align=True)
    rows = np.frombuffer(data, row, int(header["samples"]), HEADER.itemsize + fields.nbytes)
    if len(rows) == 0:
        raise ValueError("it has no samples")
    image, label = (f"f{names.index(name)}" for name in (b"image", b"label"))
    return Samples(data, rows[image], np.ascontiguousarray(rows[label], np.int64))


class RawLoader:
    """Reads the samples of a .beton file in any order; see `fastpeer.data.loader.Loader`.

    Args:
        path: a file written by `fastpeer prep`.
        batch_size: samples in a batch; the last may have fewer.
        samples: of that file, where it has been mapped already.

    Raises:
        UserError: the file cannot be read, or its images are compressed or of several sizes.
    """

    one_size = True

    def __init__(self, path: Path, batch_size: int, samples: Samples | None = None) -> None:
        self.path = path
        self.batch_size = batch_size
        self._samples = samples or map_samples(path)
        self._size = _common_size(path, self._samples)
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


def _common_size(path: Path, samples: Samples) -> tuple[int, int]:
    """Return height and width of the images, after checking that each lies in the file, uncompressed."""
    images = samples.images
    if not samples.all_raw:
        raise UserError(f"{path}: its images are compressed: read it with --data.reader ffcv")
    sizes = np.unique(np.stack([images["height"], images["width"]], axis=1), axis=0).astype(int)
    if len(sizes) > 1:
        raise UserError(f"{path}: its images must be of one size, got {len(sizes)} sizes")
    height, width = sizes[0].tolist()
    if height * width == 0 or int(images["pointer"].max()) + height * width * 3 > len(samples.data):
        raise UserError(f"{path}: its images lie beyond its end: run fastpeer prep again")
    return height, width
