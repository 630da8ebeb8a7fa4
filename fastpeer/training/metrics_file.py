"""metrics.jsonl: lines are appended, flushed with the checkpoint they belong to, and checked on resuming."""

import hashlib
import json
import logging
import os
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fastpeer.errors import UserError
from fastpeer.files import not_through_links, write_atomically

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class LogMark:
    """How far metrics.jsonl was when a checkpoint was written.

    Attributes:
        length: bytes.
        sha256: of these bytes; empty: not recorded, as by fastpeer before there were manifests.
        step: the run's step.
    """

    length: int = 0
    sha256: str = ""
    step: int = 0


class MetricsFile:
    """A run's metrics.jsonl, open for appending.

    What was written after the checkpoint is cut: it will be written again. Damaged lines before that are
    moved to `metrics.jsonl.damaged`.

    Args:
        path: the file; it is created if it is missing.
        mark: where the checkpoint left it.

    Attributes:
        cut: the bytes that were cut.

    Raises:
        UserError: the file cannot be read or written.
    """

    def __init__(self, path: Path, mark: LogMark) -> None:
        self._path = path
        with self._refused_write():
            content = path.read_bytes() if path.exists() else b""
            kept, self.cut = content[: mark.length], content[mark.length :]
            if _differs(kept, mark):
                kept = self._without_damage(kept, mark)
            self._file = open(path, "a+b", opener=not_through_links)  # noqa: SIM115
            self._file.truncate(len(kept))
        self._digest = hashlib.sha256(kept)

    @property
    def length(self) -> int:
        """Size of the file in bytes."""
        return os.fstat(self._file.fileno()).st_size

    @property
    def sha256(self) -> str:
        """SHA-256 of the file."""
        return self._digest.hexdigest()

    def append(self, record: Mapping[str, Any]) -> None:
        """Append a line.

        Raises:
            UserError: the file cannot be written.
        """
        line = json.dumps(record).encode() + b"\n"
        with self._refused_write():
            self._file.write(line)
            # At once: a kill loses no line, and `length` sees only what has left the buffer.
            self._file.flush()
        self._digest.update(line)

    def flush(self) -> None:
        """Wait until all lines have reached the disk.

        Raises:
            UserError: they cannot.
        """
        with self._refused_write():
            os.fsync(self._file.fileno())

    def close(self) -> None:
        """Close the file."""
        # `append` has flushed each line and reported its error: a second one on closing would hide it.
        with suppress(OSError):
            self._file.close()

    def _without_damage(self, content: bytes, mark: LogMark) -> bytes:
        """Move damaged lines out of the file, say what is wrong, and return what is left of it."""
        lines = content.splitlines(keepends=True)
        bad = [number for number, line in enumerate(lines) if not _is_record(line, mark.step)]
        for message in _complaints(self._path, content, bad, mark):
            log.warning(message)
        if not bad:
            return content
        damaged = self._path.with_name(f"{self._path.name}.damaged")
        with open(damaged, "ab", opener=not_through_links) as aside:
            aside.writelines(lines[number].rstrip(b"\n") + b"\n" for number in bad)
        good = b"".join(line for number, line in enumerate(lines) if number not in bad)
        write_atomically(self._path, good.decode())
        return good

    @contextmanager
    def _refused_write(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise UserError(f"{self._path}: cannot be written ({error.strerror})") from None


def _differs(content: bytes, mark: LogMark) -> bool:
    if len(content) < mark.length:
        return True
    if mark.sha256:
        return hashlib.sha256(content).hexdigest() != mark.sha256
    return not all(_is_record(line, mark.step) for line in content.splitlines(keepends=True))


def _is_record(line: bytes, last_step: int) -> bool:
    """Whether a line is whole, and one that the checkpoint at a step can have seen."""
    try:
        record = json.loads(line.decode())
        return line.endswith(b"\n") and int(record["step"]) <= last_step
    except (ValueError, KeyError, TypeError, RecursionError):
        return False


def _complaints(path: Path, content: bytes, bad: Iterable[int], mark: LogMark) -> Iterator[str]:
    numbers = [str(number + 1) for number in bad]
    if len(content) < mark.length:
        yield f"{path} must have {mark.length} bytes, got {len(content)}: lines of former epochs are missing"
    elif not numbers:
        yield f"{path} is not as its checkpoint left it: figures in it were changed"
    if numbers:
        shown = ", ".join(numbers[:5]) + (", …" if len(numbers) > 5 else "")
        words = "lines" if len(numbers) > 1 else "line"
        yield f"{path}: {words} {shown} damaged, moved to {path.name}.damaged; the log goes on without"
