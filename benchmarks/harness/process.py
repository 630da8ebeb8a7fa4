"""Running a command against the clock."""

import os
import signal
import subprocess
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

GRACE = 5.0
"""Seconds between the polite and the other way of ending a process."""


@dataclass(frozen=True)
class Ended:
    """How a command ended.

    Attributes:
        state: done, failed, timed out, or left out.
        seconds: that it took.
        reason: why it is not done; empty if it is.
        output: what it printed.
    """

    state: str
    seconds: float
    reason: str = ""
    output: str = ""


def run_limited(command: Sequence[str], folder: Path, seconds: float, log: Path) -> Ended:
    """Run a command in a folder for at most `seconds`; its output is appended to a log."""
    began = time.perf_counter()
    with log.open("a+", encoding="utf-8") as file:
        print(f"\n$ {' '.join(command)}", file=file, flush=True)
        place = file.tell()
        state, reason = _waited(_started(command, folder, file.fileno()), seconds)
    output = log.read_bytes()[place:].decode("utf-8", "replace").strip()
    return Ended(state, time.perf_counter() - began, reason, output)


def _started(command: Sequence[str], folder: Path, output: int) -> "subprocess.Popen[bytes]":
    # In a session of its own, so that the processes it starts can be ended with it.
    return subprocess.Popen(
        command,
        cwd=folder,
        stdin=subprocess.DEVNULL,
        stdout=output,
        stderr=subprocess.STDOUT,
        env={**os.environ, "PYTHONUNBUFFERED": "1"},
        start_new_session=True,
    )


def _waited(process: "subprocess.Popen[bytes]", seconds: float) -> tuple[str, str]:
    try:
        status = process.wait(seconds)
    except subprocess.TimeoutExpired:
        _end(process)
        return "timed out", f"ended after {seconds:.0f} s"
    except BaseException:
        _end(process)
        raise
    return ("done", "") if status == 0 else ("failed", f"exit status {status}")


def _end(process: "subprocess.Popen[bytes]") -> None:
    for number in (signal.SIGTERM, signal.SIGKILL):
        try:
            os.killpg(process.pid, number)
            process.wait(GRACE)
            return
        except ProcessLookupError:
            return
        except subprocess.TimeoutExpired:
            continue
