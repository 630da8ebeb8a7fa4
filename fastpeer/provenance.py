"""By which command, from which source and on which machine a run was trained: an entry for each start."""

import os
import platform
import re
import shlex
import subprocess
from collections.abc import Iterator, Mapping, Sequence
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import fastpeer
from fastpeer.versions import version_of

UNKNOWN = "not recorded"
STARTS = "starts"
"""Key in run.json of the list of starts: a dictionary each, as `begun` returns it."""
GIT_SECONDS = 3.0
"""A checkout on a slow drive is not waited for any longer."""


def begun(words: Sequence[str], step: int, device: str) -> dict[str, Any]:
    """Return the entry of a start that happens now.

    Args:
        words: of the command line, behind `fastpeer`.
        step: the step that training goes on from; 0: it begins.
        device: cpu, or the name of the GPU.
    """
    return {
        "command": shlex.join(["fastpeer", *words]),
        "began": now(),
        "step": step,
        "fastpeer": version_of("fastpeer"),
        "commit": source_commit(Path(fastpeer.__file__).resolve().parents[1]),
        "processor": processor(),
        "cores": os.cpu_count(),
        "memory": memory_bytes(),
        "gpu": None if device == "cpu" else device,
    }


def ended(facts: Mapping[str, Any]) -> dict[str, Any]:
    """Return a run's facts with the end of the newest start, which is now."""
    *former, newest = facts[STARTS]
    return {**facts, STARTS: [*former, {**newest, "ended": now()}]}


def with_start(facts: Mapping[str, Any], start: Mapping[str, Any]) -> dict[str, Any]:
    """Return a run's facts with one more start; those of older runs have none yet."""
    former = facts.get(STARTS)
    return {**facts, STARTS: [*(former if isinstance(former, list) else []), start]}


def now() -> str:
    """Return the time in UTC, such as 2026-05-01 14:30:59."""
    return datetime.now(timezone.utc).strftime("%Y-%m-%d %H:%M:%S")


def source_commit(root: Path) -> str | None:
    """Return the commit of fastpeer's checkout, with -dirty where tracked files differ from it.

    Returns:
        The commit; None where `root` is no checkout of fastpeer (an installed package, be it within somebody
        else's repository), or git is missing, fails, or does not answer in time.
    """
    if not (root / ".git").exists() or not _is_ours(root / "pyproject.toml"):
        return None
    # Of a hook that runs this, GIT_DIR would name another repository; and nothing is to be written.
    environment = {name: value for name, value in os.environ.items() if not name.startswith("GIT_")}
    environment["GIT_OPTIONAL_LOCKS"] = "0"
    git = ["git", "-C", str(root), "-c", "core.fsmonitor=false"]
    words = [*git, "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*"]
    try:
        found = subprocess.run(words, capture_output=True, text=True, timeout=GIT_SECONDS, env=environment)
    except (OSError, subprocess.SubprocessError, ValueError):
        return None
    text = found.stdout.strip()
    return text if re.fullmatch(r"[0-9a-f]{40,64}(-dirty)?", text) else None


def _is_ours(project: Path) -> bool:
    try:
        return 'name = "fastpeer"' in project.read_text("utf-8").splitlines()
    except (OSError, ValueError):
        return False


def processor() -> str | None:
    """Return the processor's name; None where the system does not tell."""
    try:
        found = re.search(r"^model name\s*:\s*(.+)$", Path("/proc/cpuinfo").read_text("utf-8"), re.MULTILINE)
    except (OSError, ValueError):
        found = None
    return found[1].strip() if found else platform.processor() or platform.machine() or None


def memory_bytes() -> int | None:
    """Return the size of the main memory in bytes; None where the system does not tell."""
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (OSError, ValueError):
        return None


def provenance_rows(facts: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """Yield what run.json tells of a run's starts, for people: name and value.

    A start on the same source and machine as the one before does not name them again.
    """
    starts = [start for start in _list(facts.get(STARTS)) if isinstance(start, Mapping)]
    if not starts:
        yield from (("command", UNKNOWN), ("source", _source_of_older(facts)), ("machine", UNKNOWN))
        return
    if starts[0].get("step"):
        yield "command", f"{UNKNOWN} of the steps before {starts[0]['step']}"
    before: Mapping[str, Any] = {}
    for start in starts:
        yield ("resumed" if start.get("step") else "command"), str(start.get("command") or UNKNOWN)
        yield "time (UTC)", f"{_times(start)}, from step {start.get('step', 0)} on"
        for name, tell in (("source", _source), ("machine", _machine)):
            if tell(start) != tell(before):
                yield name, tell(start)
        before = start


def _list(value: object) -> list[Any]:
    return value if isinstance(value, list) else []


def _times(start: Mapping[str, Any]) -> str:
    end = start.get("ended")
    return f"{start.get('began', UNKNOWN)}{f' to {end}' if end else ', no end recorded'}"


def _source(start: Mapping[str, Any]) -> str:
    commit = start.get("commit")
    return f"fastpeer {start.get('fastpeer')}, {f'commit {commit}' if commit else 'no checkout'}"


def _source_of_older(facts: Mapping[str, Any]) -> str:
    versions = facts.get("versions")
    version = versions.get("fastpeer") if isinstance(versions, Mapping) else None
    return f"fastpeer {version}, commit {UNKNOWN}" if version else UNKNOWN


def _machine(start: Mapping[str, Any]) -> str:
    memory, gpu = start.get("memory"), start.get("gpu")
    size = (
        f"{memory / 2**30:.1f} GiB" if type(memory) is int and 0 < memory < 1 << 60 else f"memory {UNKNOWN}"
    )
    name = start.get("processor") or f"processor {UNKNOWN}"
    return f"{name}, {start.get('cores', '?')} cores, {size}, {gpu or 'no GPU used'}"
