"""What lies where in a .beton file, checked before anything trusts it.

FFCV's compiled code believes the numbers in a file: a wrong one makes it read or write beyond its memory.
Here each is held against the others and against the file's length, in NumPy, before FFCV opens the file.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from fastpeer.data.jpeg_headers import jpeg_sizes
from fastpeer.data_prep.options import MAX_PIXELS
from fastpeer.errors import UserError, one_line

VERSION = 2
"""Of the format, in FFCV 1.0."""
HEADER = np.dtype(
    [
        ("version", "<u2"), ("fields", "<u2"), ("page_size", "<u4"), ("samples", "<u8"),
        ("allocations", "<u8"),
    ],
    align=True,
)  # fmt: skip
FIELD = np.dtype([("kind", "u1"), ("name", "u1", 16), ("arguments", "u1", 1024)])
"""Follows the header, once for each field of a sample."""
ALLOCATION = np.dtype([("sample", "<u8"), ("pointer", "<u8"), ("size", "<u8")])
"""Which bytes belong to a sample; the table of these ends the file."""
MAX_FIELDS = 256
INTEGER, IMAGE = 1, 2
JPEG, RAW = 0, 1
"""Modes of an image; one that is raw is stored as its pixels, rows first, RGB."""
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
        lengths: bytes of each image, int64 (N,).
        labels: int64 (N,).
    """

    data: np.ndarray
    images: np.ndarray
    lengths: np.ndarray
    labels: np.ndarray

    @property
    def all_raw(self) -> bool:
        """Whether all images are stored as their pixels."""
        return bool((self.images["mode"] == RAW).all())

    @property
    def all_jpeg(self) -> bool:
        """Whether all images are stored as JPEG."""
        return bool((self.images["mode"] == JPEG).all())

    def sizes(self) -> np.ndarray:
        """Return the sizes that images have, each once: height and width, int64 (n, 2)."""
        # One number for each: to sort pairs takes NumPy seconds for a million.
        both = self.images["height"].astype(np.int64) << 16 | self.images["width"]
        different = np.unique(both)
        return np.stack([different >> 16, different & 0xFFFF], axis=1)


def common_size(path: Path, samples: Samples) -> tuple[int, int]:
    """Return height and width of a file's images.

    Raises:
        UserError: they are of several sizes.
    """
    sizes = samples.sizes()
    if len(sizes) > 1:
        raise UserError(f"{path}: its images must be of one size, got {len(sizes)} sizes")
    height, width = sizes[0].tolist()
    return height, width


def require_jpegs(path: Path, samples: Samples) -> Samples:
    """Return the samples of a file.

    Raises:
        UserError: not all of its images are JPEGs.
    """
    if not samples.all_jpeg:
        raise UserError(f"{path}: must hold JPEGs alone, as dataset.json says: run fastpeer prep again")
    return samples


def map_samples(path: Path) -> Samples:
    """Map a .beton file into memory and find its fields `image` and `label`; others may stand beside them.

    Every image lies within the file, in bytes of its own, and is as large as its row of metadata says; that
    of a JPEG is held against its header.

    Raises:
        UserError: the file is none of FFCV 1.0's, lacks these fields, is empty, or contradicts itself.
    """
    try:
        # Copied on write: torch warns of memory that cannot be written.
        return _checked(np.asarray(np.memmap(path, np.uint8, "c")))
    except (ValueError, OverflowError) as error:
        raise UserError(
            f"{path}: not a .beton file that fastpeer can read ({one_line(error)}); run fastpeer prep again"
        ) from None


def _checked(data: np.ndarray) -> Samples:
    header = np.frombuffer(data, HEADER, 1)[0]
    _check_header(header)
    fields = np.frombuffer(data, FIELD, int(header["fields"]), HEADER.itemsize)
    names, kinds = list(_names(fields)), fields["kind"].tolist()
    _check_fields(names, kinds)
    # Unnamed, as FFCV does it: NumPy numbers them, and aligns each to its type.
    row = np.dtype([("", ROWS[kind]) for kind in kinds], align=True)
    rows = np.frombuffer(data, row, int(header["samples"]), HEADER.itemsize + fields.nbytes)
    if len(rows) == 0:
        raise ValueError("it has no samples")
    table = _allocations(data, int(header["allocations"]), HEADER.itemsize + fields.nbytes + rows.nbytes)
    if (table["sample"] >= len(rows)).any():
        raise ValueError(f"it has {len(rows)} samples, and bytes of another one")
    image, label = (f"f{names.index(name)}" for name in ("image", "label"))
    lengths = _check_images(data, rows[image], table)
    return Samples(data, rows[image], lengths, np.ascontiguousarray(rows[label], np.int64))


def _check_header(header: np.void) -> None:
    page = int(header["page_size"])
    if header["version"] != VERSION:
        raise ValueError(f"its format must have version {VERSION}, got {header['version']}")
    if header["fields"] > MAX_FIELDS:
        raise ValueError(f"a sample must have at most {MAX_FIELDS} fields, got {header['fields']}")
    if page == 0 or page & (page - 1):
        raise ValueError(f"its page size must be a power of two, got {page}")


def _names(fields: np.ndarray) -> Iterator[str]:
    for name in fields["name"]:
        # As FFCV reads it, up to the first zero; two of one name would be one field to it.
        yield name.tobytes().decode("ascii").partition("\0")[0]


def _check_fields(names: list[str], kinds: list[int]) -> None:
    found = dict(zip(names, kinds, strict=True))
    if found.get("image") != IMAGE or found.get("label") != INTEGER:
        raise ValueError("its samples must have an image and an integer label")
    if len(found) < len(names):
        raise ValueError("two of its fields have the same name")
    if unknown := set(kinds) - ROWS.keys():
        raise ValueError(f"it has a field of unknown kind {min(unknown)}")


def _allocations(data: np.ndarray, start: int, first: int) -> np.ndarray:
    """Return the table of the samples' bytes, by pointer, after checking that none overlap.

    Args:
        data: the file.
        start: where the table begins; it goes on to the end of the file.
        first: the first byte behind the rows of metadata.
    """
    if not first <= start <= len(data) or (len(data) - start) % ALLOCATION.itemsize:
        raise ValueError(f"its table of allocations must lie between byte {first} and its end, got {start}")
    table = np.frombuffer(data, ALLOCATION, -1, start) if start < len(data) else np.empty(0, ALLOCATION)
    table = table[np.argsort(table["pointer"], kind="stable")]
    pointers, sizes = table["pointer"], table["size"]
    # Compared without a sum, which could overflow.
    inside = (pointers >= first) & (pointers <= start) & (sizes <= np.uint64(start) - pointers)
    if not inside.all():
        raise ValueError(f"allocation {int(np.argmin(inside))} lies beyond its end or in its header")
    if (sizes[:-1] > pointers[1:] - pointers[:-1]).any():
        raise ValueError("two of its allocations overlap")
    return table


def _check_images(data: np.ndarray, images: np.ndarray, table: np.ndarray) -> np.ndarray:
    """Check that each image has bytes of its own, as many as it needs; return how many, int64 (N,)."""
    pointers = images["pointer"].astype(np.uint64)
    # The last of equal pointers: those before it are empty.
    places = np.searchsorted(table["pointer"], pointers, "right") - 1
    known = places >= 0
    found = table[np.where(known, places, 0)] if len(table) else np.zeros(len(images), ALLOCATION)
    known &= (found["pointer"] == pointers) & (found["sample"] == np.arange(len(images), dtype=np.uint64))
    _require(known, "has no bytes of its own")
    # FFCV takes any of several entries with one pointer.
    alone = np.searchsorted(table["pointer"], pointers, "left") == places
    _require(alone & (found["size"] > 0), "has no bytes of its own")
    raw = images["mode"] == RAW
    _require(raw | (images["mode"] == JPEG), "is stored in no known mode")
    pixels = images["height"].astype(np.int64) * images["width"]
    _require((pixels > 0) & (pixels <= MAX_PIXELS), f"must have 1 to {MAX_PIXELS:,} pixels")
    _require(~raw | (found["size"] == 3 * pixels), "does not take the bytes of its pixels")
    _check_jpegs(data, images, found, np.flatnonzero(~raw))
    lengths: np.ndarray = found["size"].astype(np.int64)
    return lengths


def _check_jpegs(data: np.ndarray, images: np.ndarray, found: np.ndarray, chosen: np.ndarray) -> None:
    """Check that JPEGs are as large as their rows say: FFCV decodes into memory of that size."""
    starts = found["pointer"][chosen].astype(np.int64)
    declared = jpeg_sizes(data, starts, starts + found["size"][chosen].astype(np.int64))
    expected = np.stack([images["height"][chosen], images["width"][chosen]], axis=1)
    same = np.ones(len(images), bool)
    same[chosen] = (declared == expected).all(axis=1)
    _require(same, "is no baseline JPEG of the size that the file gives it")


def _require(right: np.ndarray, otherwise: str) -> None:
    if not right.all():
        raise ValueError(f"image {int(np.argmin(right))} {otherwise}")
