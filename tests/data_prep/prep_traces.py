"""What a preparation could leave behind."""

from __future__ import annotations

import time
from pathlib import Path


def leftovers(folder: Path) -> list[str]:
    """Names in `folder` that a preparation began and did not clear away."""
    return [entry.name for entry in folder.iterdir() if ".partial-" in entry.name or ".old-" in entry.name]


def shared_memory() -> set[str]:
    return {entry.name for entry in Path("/dev/shm").glob("psm_*")}


def remaining(names: set[str], seconds: float = 30.0) -> set[str]:
    """Return which pieces of shared memory stay; other tests, beside this one, give theirs back."""
    until = time.monotonic() + seconds
    while names & shared_memory() and time.monotonic() < until:
        time.sleep(0.1)
    return names & shared_memory()


def writer_processes(mark: str) -> list[str]:
    """Command lines of writer processes that work in a folder with `mark` in its path."""
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        try:
            command, folder = (process / "cmdline").read_text(), str((process / "cwd").readlink())
        except OSError:
            continue
        if "data_prep.writer.process" in command and mark in folder:
            found.append(command)
    return found
