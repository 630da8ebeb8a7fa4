"""Runs of the command line that are killed at one of the points where they change something on the disk."""

from __future__ import annotations

import json
import os
import signal
import stat
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NoReturn

from fastpeer.cli.main import main

CHANGES = {"os.rename", "os.remove", "os.mkdir", "os.rmdir", "os.symlink", "os.truncate"}
"""Python's audit events before something is changed; `open` is another where it is for writing."""
WRITING = os.O_WRONLY | os.O_RDWR


@dataclass
class Points:
    """Counts the changes below a folder in the order in which they are made, from 1, and dies before one.

    Attributes:
        folder: the folder.
        fatal: the change to die before; 0: none.
        torn: whether a file dies half written, where the change is that it is flushed.
        seen: what each change so far was.
    """

    folder: str
    fatal: int = 0
    torn: bool = False
    seen: list[str] = field(default_factory=list)

    def watch(self) -> None:
        """Begin to count; it cannot be ended, but by the process."""
        sys.addaudithook(self._audit)
        flush = os.fsync

        def fsync(descriptor: Any) -> None:
            number = descriptor if isinstance(descriptor, int) else descriptor.fileno()
            self._pass(f"fsync {os.readlink(f'/proc/self/fd/{number}')}", number)
            flush(descriptor)

        os.fsync = fsync

    def _audit(self, event: str, arguments: tuple[Any, ...]) -> None:
        if event == "open":
            path, mode, flags = arguments
            changes = bool(flags & WRITING) or (isinstance(mode, str) and not mode.startswith("r"))
            if changes and not isinstance(path, int):
                self._pass(f"open {os.fspath(path)}")
        elif event in CHANGES:
            # A name without a folder is one that shutil.rmtree removes.
            self._pass(
                f"{event} {' '.join(str(name) for name in arguments if isinstance(name, (str, Path)))}"
            )

    def _pass(self, what: str, descriptor: int = -1) -> None:
        if self.folder not in what and "/" in what:
            return
        self.seen.append(what)
        if len(self.seen) == self.fatal:
            if self.torn:
                tear(descriptor)
            os.kill(os.getpid(), signal.SIGKILL)


def tear(descriptor: int) -> None:
    """Leave the first half of an open file."""
    status = os.fstat(descriptor)
    if stat.S_ISREG(status.st_mode):
        os.truncate(f"/proc/self/fd/{descriptor}", status.st_size // 2)


def run(words: list[str], points: Points) -> tuple[int, list[str]]:
    """Run a command line in a copy of this process; return its exit code and the changes that it made.

    The changes of one that was killed are not known. What this process has imported and compiled need not be
    so again.
    """
    reader, writer = os.pipe()
    child = os.fork()
    if not child:
        _run_and_exit(words, points, writer)
    os.close(writer)
    with os.fdopen(reader) as file:
        seen = json.loads(file.read() or "[]")
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), seen


def _run_and_exit(words: list[str], points: Points, writer: int) -> NoReturn:
    code = 99
    try:
        points.watch()
        code = main(words)
        os.write(writer, json.dumps(points.seen).encode())
    finally:
        os._exit(code)
