"""Running a command against the clock."""

import ctypes
import os
import signal
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from fastpeer.errors import UserError

GRACE = 5.0
"""Seconds between the polite and the other way of ending a process."""
PR_SET_PDEATHSIG = 1
"""Of Linux' prctl: the signal that a process gets when its parent is gone."""


@dataclass(frozen=True)
class Ended:
    """How a command ended.

    Attributes:
        state: done, failed, timed out or left out; running and stopped, of what has not ended by itself.
        seconds: that it took.
        reason: why it is not done; empty if it is.
        output: what it printed.
    """

    state: str
    seconds: float
    reason: str = ""
    output: str = ""

    def refuse_unless_done(self) -> None:
        """Raise UserError with the reason and the last line, unless the command is done."""
        if self.state != "done":
            raise UserError(" ".join([self.reason, *self.output.splitlines()[-1:]]))


def run_limited(command: Sequence[str], folder: Path, seconds: float, log: Path) -> Ended:
    """Run a command in a folder for at most `seconds`; its output is appended to a log."""
    began = time.perf_counter()
    with log.open("a+", encoding="utf-8") as file:
        print(f"\n$ {' '.join(command)}", file=file, flush=True)
        place = file.tell()
        state, reason = _waited(started(command, folder, file), seconds)
    output = log.read_bytes()[place:].decode("utf-8", "replace").strip()
    return Ended(state, time.perf_counter() - began, reason, output)


def run_fastpeer(words: Sequence[str], seconds: float, log: Path) -> Ended:
    """Run `fastpeer` with some words, in the current folder."""
    return run_limited([sys.executable, "-m", "fastpeer", *words], Path.cwd(), seconds, log)


def started(
    command: Sequence[str], folder: Path, output: IO[bytes] | IO[str], more: Mapping[str, str] | None = None
) -> "subprocess.Popen[bytes]":
    """Start a command in a session of its own, so that the processes it starts can be ended with it.

    It is killed where this process is, and so is what it starts in the same way: else a training would run
    on beside whatever is measured next. `more` is added to its environment.
    """
    libc = ctypes.CDLL(None)
    return subprocess.Popen(
        command, cwd=folder, stdin=subprocess.DEVNULL, stdout=output, stderr=subprocess.STDOUT,
        env={**os.environ, "PYTHONUNBUFFERED": "1", **(more or {})}, start_new_session=True,
        preexec_fn=lambda: libc.prctl(PR_SET_PDEATHSIG, signal.SIGKILL),
    )  # fmt: skip


def _waited(process: "subprocess.Popen[bytes]", seconds: float) -> tuple[str, str]:
    try:
        status = process.wait(seconds)
    except subprocess.TimeoutExpired:
        end(process)
        return "timed out", f"ended after {seconds:.0f} s"
    except BaseException:
        end(process)
        raise
    return ("done", "") if status == 0 else ("failed", f"exit status {status}")


def end(process: "subprocess.Popen[bytes]") -> None:
    """End a process, and whatever is left of its session."""
    for number in (signal.SIGTERM, signal.SIGKILL):
        try:
            os.killpg(process.pid, number)
            process.wait(GRACE)
        except ProcessLookupError:
            return
        except subprocess.TimeoutExpired:
            continue
