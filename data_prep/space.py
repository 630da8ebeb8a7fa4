"""How large FFCV files get, known before anything is written."""

from __future__ import annotations

import math
import shutil
from pathlib import Path

from fastpeer.data_prep.image import Target
from fastpeer.data_prep.source import Source
from fastpeer.errors import UserError

MIN_PAGE_BYTES = 1 << 21  # FFCV's own bound
IMAGES_PER_PAGE = 4
HEADER_BYTES = 4096
METADATA_BYTES = 32
ALLOCATION_BYTES = 24


def page_size(target: Target) -> int:
    """Return the bytes of a page: FFCV's smallest, or the power of two that holds a few images."""
    needed = IMAGES_PER_PAGE * target.height * target.width * 3
    return max(MIN_PAGE_BYTES, 1 << math.ceil(math.log2(needed)))


def file_bytes(count: int, target: Target, workers: int) -> int:
    """Return the most bytes that a split of `count` images can take: each worker leaves a page unfilled."""
    page = page_size(target)
    per_page = page // (target.height * target.width * 3)
    header = math.ceil((HEADER_BYTES + count * METADATA_BYTES) / page) * page
    return header + (math.ceil(count / per_page) + workers) * page + count * ALLOCATION_BYTES


def require_space(folder: Path, source: Source, workers: int) -> None:
    """Raise UserError unless the disk that holds `folder` has room for all splits."""
    needed = sum(file_bytes(len(split.labels), source.target, workers) for split in source.splits.values())
    free = shutil.disk_usage(folder).free
    if free < needed:
        raise UserError(
            f"the disk is too full: the data set needs up to {needed / 1e6:,.0f} MB and "
            f"{free / 1e6:,.0f} MB are free: free some room or choose another --out"
        )
