"""Files that survive a kill: written whole or not at all, flushed to the disk; their checksums."""

import errno
import fcntl
import hashlib
import logging
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryFile
from typing import IO

from fastpeer.errors import UserError

log = logging.getLogger(__name__)
LARGEST_TEXT = 1 << 28
"""Bytes; a file with holes may pretend to be of any length."""
_BLOCK = 1 << 22


def check_room(folder: Path, name: Path, advice: str, size: int = 0) -> None:
    """Make sure that a file of so many bytes can be written in a folder, without leaving a trace.

    Raises:
        UserError: it cannot; `name` is what the error calls it, and `advice` its end.
    """
    try:
        # Without a name, where the file system has such files: nothing tells of it, even after a kill.
        with TemporaryFile(dir=folder) as trial:
            trial.write(bytes(size))
    except OSError as error:
        raise UserError(f"{name}: cannot be written ({error.strerror}): {advice}") from None


def file_sha256(path: Path) -> str:
    """Return a file's SHA-256. Reading it also fills the page cache, from which it may be read next."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(_BLOCK):
            digest.update(block)
    return digest.hexdigest()


def read_text(path: Path) -> str:
    """Return the text of a small file, of JSON for instance.

    Raises:
        OSError: it cannot be read, or is larger than any that fastpeer writes.
        ValueError: it is not UTF-8.
    """
    if path.stat().st_size > LARGEST_TEXT:
        raise OSError(errno.EFBIG, f"larger than {LARGEST_TEXT:,} bytes", str(path))
    return path.read_text("utf-8")


def not_through_links(path: str, flags: int) -> int:
    """Open a file, as the opener of `open`; a symbolic link may lead to a file that is not to be written.

    Raises:
        OSError: the path is a symbolic link, or the file cannot be opened.
    """
    return os.open(path, flags | os.O_NOFOLLOW, 0o666)


def flush(path: Path) -> None:
    """Wait until a file's contents, or a folder's entries, have reached the disk.

    Raises:
        OSError: they cannot reach it. That a file system cannot flush folders is no error.
    """
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    except OSError as error:
        if path.is_file() or error.errno not in (errno.EINVAL, errno.ENOTSUP, errno.ENOSYS, errno.EBADF):
            raise
    finally:
        os.close(descriptor)


def write_atomically(file: Path, content: str | bytes) -> None:
    """Replace what a file holds atomically: a reader, or a kill, finds either the previous or the new one.

    Raises:
        UserError: the file cannot be written; the previous one is kept.
    """
    update_atomically(file, lambda: content)


def update_atomically(file: Path, content: Callable[[], str | bytes]) -> None:
    """Replace what a file holds, as `write_atomically` does, by something that may depend on the file.

    Args:
        file: the file, which need not exist.
        content: returns the new text or bytes; no other process updates the file meanwhile.

    Raises:
        UserError: the file cannot be written, or `content` raised it; the previous one is kept.
    """
    new = unfinished(file)
    try:
        with _only_writer(new) as stream:
            try:
                new_content = content()
                stream.write(new_content.encode() if isinstance(new_content, str) else new_content)
                stream.flush()
                os.fsync(stream.fileno())
                os.replace(new, file)
            except (OSError, UserError):
                new.unlink(missing_ok=True)
                raise
    except OSError as error:
        raise UserError(f"{file}: cannot be written ({error.strerror})") from None


def unfinished(file: Path) -> Path:
    """Return where a file's next text is written; it stays behind if the process is killed meanwhile."""
    return file.with_name(f".{file.name}.new")


@contextmanager
def _only_writer(new: Path) -> Iterator[IO[bytes]]:
    """Open the file that will take another's place, empty, and keep other processes from doing so."""
    while True:
        # For appending, which does not empty what another process may be writing.
        with open(new, "ab", opener=not_through_links) as stream:
            _wait_for_lock(stream, new)
            if _is_at(new, stream):
                stream.truncate(0)
                yield stream
                return


def _is_at(new: Path, stream: IO[bytes]) -> bool:
    """Tell whether a path is still that of an open file: whoever had the lock before may have renamed it."""
    try:
        # Asked once: another process may rename it between two questions.
        return os.path.samestat(new.stat(), os.fstat(stream.fileno()))
    except FileNotFoundError:
        return False


def _wait_for_lock(stream: IO[bytes], path: Path) -> None:
    try:
        # The kernel's lock, which ends with the process, however that ends.
        fcntl.flock(stream, fcntl.LOCK_EX)
    except OSError as error:
        log.warning("%s cannot be locked (%s): let no other process write it", path, error.strerror)
