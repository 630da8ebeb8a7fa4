"""How large FFCV files get, known before anything is written."""

from __future__ import annotations

import math
import shutil
from collections.abc import Sequence
from pathlib import Path

from fastpeer.data_prep.image import Target
from fastpeer.data_prep.jpeg import JpegSplit
from fastpeer.data_prep.source import Source, Split
from fastpeer.errors import UserError

MIN_PAGE_BYTES = 1 << 21  # FFCV's own bound
IMAGES_PER_PAGE = 4
HEADER_BYTES = 4096
METADATA_BYTES = 32
ALLOCATION_BYTES = 24


def page_size(target: Target) -> int:
    """Return the bytes of a page: FFCV's smallest, or the power of two that holds a few images."""
    return _page_of(target.height * target.width * 3)


def file_bytes(count: int, target: Target, workers: int) -> int:
    """Return the most bytes that a split of `count` images can take: each worker leaves a page unfilled."""
    page = page_size(target)
    per_page = page // (target.height * target.width * 3)
    header = math.ceil((HEADER_BYTES + count * METADATA_BYTES) / page) * page
    return header + (math.ceil(count / per_page) + workers) * page + count * ALLOCATION_BYTES


def jpeg_page_size(sizes: Sequence[int]) -> int:
    """Return the bytes of a page of JPEGs, given those of the source's files; few kinds grow as JPEG."""
    return _page_of(max(sizes))


def jpeg_file_bytes(sizes: Sequence[int], workers: int) -> int:
    """Return about the most bytes that a split takes whose files stay as they are."""
    page = jpeg_page_size(sizes)
    header = math.ceil((HEADER_BYTES + len(sizes) * METADATA_BYTES) / page) * page
    # A page is left where the next image does not fit.
    pages = math.ceil(sum(sizes) / (page - max(sizes))) + workers
    return header + pages * page + len(sizes) * ALLOCATION_BYTES


def _page_of(largest: int) -> int:
    return max(MIN_PAGE_BYTES, 1 << math.ceil(math.log2(IMAGES_PER_PAGE * largest)))


def split_page_size(split: Split) -> int:
    """Return the bytes of a page of a split's file."""
    if isinstance(split, JpegSplit):
        return jpeg_page_size(split.sizes)
    assert isinstance(split.target, Target)
    return page_size(split.target)


def split_bytes(split: Split, workers: int) -> int:
    """Return the most bytes that a split's file can take."""
    if isinstance(split, JpegSplit):
        return jpeg_file_bytes(split.sizes, workers)
    assert isinstance(split.target, Target)
    return file_bytes(len(split.labels), split.target, workers)


def require_space(folder: Path, source: Source, workers: int) -> None:
    """Raise UserError unless the disk that holds `folder` has room for all splits."""
    needed = sum(split_bytes(split, workers) for split in source.splits.values())
    free = shutil.disk_usage(folder).free
    if free < needed:
        raise UserError(
            f"the disk is too full: the data set needs up to {needed / 1e6:,.0f} MB and "
            f"{free / 1e6:,.0f} MB are free: free some room or choose another --out"
        )
