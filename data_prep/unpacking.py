"""What an archive may unpack to: a few kilobytes can declare, or grow to, more than any disk holds."""

from __future__ import annotations

import bz2
import gzip
import io
import lzma
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import cast

from fastpeer.errors import UserError

MAX_FILE = 512 << 20
"""Bytes of one file in an archive or folder; the largest of an official data set has 155 MB."""
MAX_FACTOR = 100
"""How many times its own size an archive may unpack to; images hardly shrink when they are packed."""
SMALL = 64 << 20
"""Bytes that any archive may unpack to."""
OPENERS: Mapping[bytes, Callable[[Path, str], object]] = {
    b"\x1f\x8b": gzip.open, b"BZh": bz2.open, b"\xfd7zXZ\0": lzma.open, b"\x5d\0\0": lzma.open
}  # fmt: skip
"""By how a file begins."""


def most_unpacked(path: Path) -> int:
    """Return the most bytes that an archive may unpack to."""
    return max(SMALL, MAX_FACTOR * path.stat().st_size)


def require_file_size(name: str, size: int) -> None:
    """Raise UserError unless a file is of a size that is read at once."""
    if size > MAX_FILE:
        raise UserError(f"{name} has {size:,} bytes, more than the {MAX_FILE:,} of any image: do not use it")


def too_much(label: str, most: int) -> UserError:
    """Return the error for an archive that unpacks to more than it may."""
    return UserError(
        f"{label} unpacks to more than {most:,} bytes, {MAX_FACTOR} times its size: if you trust it, unpack"
        " it and pass the folder"
    )


class BoundedReader:
    """The bytes of a tar, unpacked as they are read, for tarfile.

    Args:
        path: the tar, compressed or not.

    Raises:
        UserError: more is read, or passed over, than the tar may unpack to.
    """

    def __init__(self, path: Path) -> None:
        self._label, self._most = path.name, most_unpacked(path)
        with path.open("rb") as file:
            start = file.read(6)
        opener = next((opener for magic, opener in OPENERS.items() if start.startswith(magic)), open)
        self._stream = cast("io.BufferedIOBase", opener(path, "rb"))

    def read(self, size: int = -1) -> bytes:
        """Return up to `size` bytes; all that are left without one."""
        left = self._most - self._stream.tell()
        data = self._stream.read(left + 1 if size < 0 else min(size, left + 1))
        if len(data) > left:
            raise too_much(self._label, self._most)
        return data

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        """Go to a place, counted from the start alone."""
        assert whence == io.SEEK_SET
        if offset > self._most:
            raise too_much(self._label, self._most)
        return self._stream.seek(offset)

    def tell(self) -> int:
        """Return the place in the unpacked bytes."""
        return self._stream.tell()

    def close(self) -> None:
        """Close the file."""
        self._stream.close()
