"""What passes between `prepare` and the writer process: a `Job` one way, `Reports` the other."""

from __future__ import annotations

import errno
import json
import os
import signal
import sys
import traceback
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

from fastpeer.data_prep.options import PrepOptions
from fastpeer.errors import UserError, one_line

REPORT_LIMIT = 3000  # a pipe keeps lines below 4096 bytes whole, whichever process writes them
DISK_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


@dataclass(frozen=True)
class Job:
    """What the writer process has to do.

    Attributes:
        options: checked; the source is an absolute path, or None for the bundled data set.
        folder: an empty folder to write into, which takes the place of `options.out` afterwards.
        downloaded: the source is an archive that was downloaded for this.
    """

    options: PrepOptions
    folder: Path
    downloaded: bool = False


class Reports:
    """Lines of JSON to the process that waits for this one.

    Args:
        descriptor: the pipe; forked processes write into the same.
    """

    def __init__(self, descriptor: int) -> None:
        self.descriptor = descriptor

    def progress(self, stage: str, done: int, total: int) -> None:
        """Report that `done` more samples of `total` are through a stage."""
        self._send({"stage": stage, "done": done, "total": total})

    def manifest(self, manifest: dict[str, Any]) -> None:
        """Report the content of `dataset.json`, which means that all is written."""
        self._send({"manifest": manifest})

    def fail(self, error: Exception) -> NoReturn:
        """Report an error (an unforeseen one as a traceback) and end the group, this process included."""
        try:
            if isinstance(error, UserError | OSError | MemoryError):
                self._send({"error": _message(error)[:REPORT_LIMIT]})
            else:
                traceback.print_exception(error)
                sys.stderr.flush()
        finally:
            os.killpg(0, signal.SIGTERM)
        raise SystemExit(1)

    def _send(self, report: dict[str, Any]) -> None:
        rest = json.dumps(report).encode() + b"\n"
        while rest:
            rest = rest[os.write(self.descriptor, rest) :]


def _message(error: Exception) -> str:
    if isinstance(error, OSError) and error.errno in DISK_FULL:
        return "the disk is full or the file too large for it: free some room or choose another --out"
    if isinstance(error, MemoryError):
        return "out of memory: close other programs or give it fewer --workers"
    return one_line(error) or type(error).__name__
