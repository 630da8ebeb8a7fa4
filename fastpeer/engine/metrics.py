"""What a run writes down while it goes: metrics.jsonl, and TensorBoard events of the same numbers."""

import json
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from fastpeer.errors import UserError


class MetricsLog:
    """Appends records to a file.

    Args:
        file: metrics.jsonl.
        length: bytes to keep of what it already holds; what follows was written after the checkpoint
            that the run goes on from, and will be written again.
        tensorboard: folder for TensorBoard's events, if they are wanted.
        step: the run's step.
    """

    def __init__(self, file: Path, length: int, tensorboard: Path | None, step: int) -> None:
        self._path = file
        with self._named_errors():
            self._file = file.open("ab")
            self._file.truncate(min(length, self.length))
        self._writer: Any = None
        if tensorboard is not None:
            from torch.utils.tensorboard import SummaryWriter

            self._writer = SummaryWriter(str(tensorboard), purge_step=step)

    @property
    def length(self) -> int:
        """Bytes written so far."""
        return os.fstat(self._file.fileno()).st_size

    def write(self, record: Mapping[str, Any]) -> None:
        """Add a line; nested numbers also go to TensorBoard, at the record's `step`."""
        with self._named_errors():
            self._file.write(json.dumps(record).encode() + b"\n")
            self._file.flush()
        if self._writer is not None:
            for name, value in _numbers(record, ""):
                self._writer.add_scalar(name, value, record["step"])

    def close(self) -> None:
        """Write out what is buffered."""
        with suppress(OSError):
            self._file.close()
        if self._writer is not None:
            self._writer.close()

    @contextmanager
    def _named_errors(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise UserError(f"{self._path}: cannot be written ({error.strerror})") from None


def _numbers(record: Mapping[str, Any], prefix: str) -> Iterator[tuple[str, float]]:
    for name, value in record.items():
        if isinstance(value, Mapping):
            yield from _numbers(value, f"{prefix}{name}/")
        elif isinstance(value, (int, float)) and name not in ("step", "epoch"):
            yield prefix + name, value
