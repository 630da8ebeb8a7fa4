"""How large FFCV files get, known before anything is written."""

from __future__ import annotations

import math
import shutil
from collections.abc import Sequence
from pathlib import Path

from fastpeer.data_prep.images import PixelForm
from fastpeer.data_prep.sources.source import FileSplit, Source, Split
from fastpeer.errors import UserError

MIN_PAGE_BYTES = 1 << 21  # FFCV's own bound
IMAGES_PER_PAGE = 4
HEADER_BYTES = 4096
METADATA_BYTES = 32
ALLOCATION_BYTES = 24


def page_size(form: PixelForm) -> int:
    """Return the bytes of a page: FFCV's smallest, or the power of two that holds a few images."""
    return _page_for(_pixel_bytes(form))


def file_bytes(count: int, form: PixelForm, workers: int) -> int:
    """Return the most bytes that a split of `count` images can take: each worker leaves a page unfilled."""
    page = page_size(form)
    full_pages = math.ceil(count / (page // _pixel_bytes(form)))
    return _whole_file(count, full_pages + workers, page)


def jpeg_page_size(sizes: Sequence[int]) -> int:
    """Return the bytes of a page of JPEGs, given those of the source's files; few kinds grow as JPEG."""
    return _page_for(max(sizes))


def jpeg_file_bytes(sizes: Sequence[int], workers: int) -> int:
    """Return about the most bytes that a split takes whose files, of `sizes` bytes, stay as they are."""
    page = jpeg_page_size(sizes)
    # A page is left where the next image does not fit.
    full_pages = math.ceil(sum(sizes) / (page - max(sizes)))
    return _whole_file(len(sizes), full_pages + workers, page)


def split_page_size(split: Split) -> int:
    """Return the bytes of a page of a split's file."""
    if isinstance(split.form, PixelForm):
        return page_size(split.form)
    return jpeg_page_size(_file_sizes(split))


def split_bytes(split: Split, workers: int) -> int:
    """Return the most bytes that a split's file can take."""
    if isinstance(split.form, PixelForm):
        return file_bytes(len(split.labels), split.form, workers)
    return jpeg_file_bytes(_file_sizes(split), workers)


def require_space(folder: Path, source: Source, workers: int) -> None:
    """Raise UserError unless the disk that holds `folder` has room for all splits."""
    needed = sum(split_bytes(split, workers) for split in source.splits.values())
    free = shutil.disk_usage(folder).free
    if free < needed:
        raise UserError(
            f"the disk is too full: the data set needs up to {needed / 1e6:,.0f} MB and "
            f"{free / 1e6:,.0f} MB are free: free some room or choose another --out"
        )


def _pixel_bytes(form: PixelForm) -> int:
    return form.height * form.width * 3


def _page_for(largest: int) -> int:
    return max(MIN_PAGE_BYTES, 1 << math.ceil(math.log2(IMAGES_PER_PAGE * largest)))


def _whole_file(count: int, pages: int, page: int) -> int:
    """Return the bytes of header, pages of images, and the table of where each image lies."""
    header = math.ceil((HEADER_BYTES + count * METADATA_BYTES) / page) * page
    return header + pages * page + count * ALLOCATION_BYTES


def _file_sizes(split: Split) -> list[int]:
    assert isinstance(split, FileSplit)  # only files are kept as JPEG
    return split.file_sizes
