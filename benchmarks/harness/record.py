"""Records: a median with its spread, and the report of a script that holds them with their circumstances."""

import datetime
import json
import os
import platform
import statistics
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, is_dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from fastpeer.step.measured import cpu_name, describe_device

ROOT = Path(__file__).resolve().parents[2]


def facts(device: torch.device) -> dict[str, Any]:
    """Return device, driver, versions, processor, threads, commit and date."""
    return {
        "device": device_name(device),
        "driver": _output("nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader")
        if device.type == "cuda"
        else None,
        "torch": torch.__version__,
        "triton": _version("triton"),
        "cuda": torch.version.cuda,
        "capability": describe_device(device).capability or None,
        "cudnn": _cudnn() if device.type == "cuda" else None,
        "python": platform.python_version(),
        "cpu": cpu_name(),
        "threads": torch.get_num_threads(),
        **commit(),
        "date": datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
    }


def device_name(device: torch.device) -> str:
    """Return a GPU's name, or the processor's."""
    return describe_device(device).name


def commit() -> dict[str, Any]:
    """Return the commit measured, and whether files differ from it.

    Where a copy of the tree is measured, FASTPEER_COMMIT names the commit: the copy may be in a repository of
    another history.
    """
    head = _output("git", "-C", str(ROOT), "rev-parse", "HEAD")
    if head is None or "FASTPEER_COMMIT" in os.environ:
        return {"commit": os.environ.get("FASTPEER_COMMIT"), "dirty": None}
    return {"commit": head, "dirty": bool(_output("git", "-C", str(ROOT), "status", "--porcelain"))}


def _cudnn() -> int | None:
    version: int | None = torch.backends.cudnn.version()  # type: ignore[no-untyped-call]
    return version


def _version(name: str) -> str | None:
    try:
        return str(__import__(name).__version__)
    except ImportError:
        return None


def _output(*command: str) -> str | None:
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=20, check=True)
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip()


Label = str | int | float | bool | None


@dataclass(frozen=True)
class Record:
    """One measured quantity.

    Attributes:
        name: of the variant that was measured.
        value: median of the samples, in `unit`.
        p20, p80: percentiles of the samples.
        n: number of samples; 1 for what is counted and not measured.
        unit: of value, p20 and p80.
        labels: what it was measured on, such as model and batch size.
    """

    name: str
    value: float
    p20: float
    p80: float
    n: int
    unit: str
    labels: Mapping[str, Label] = field(default_factory=dict)


def record(name: str, samples: Sequence[float], unit: str, **labels: Label) -> Record:
    """Summarise samples."""
    low, high = np.percentile(samples, [20, 80])
    return Record(name, statistics.median(samples), float(low), float(high), len(samples), unit, labels)


def counted(name: str, value: float, unit: str, **labels: Label) -> Record:
    """Record what has no spread, such as bytes."""
    return Record(name, value, value, value, 1, unit, labels)


class Report:
    """What a script found, written anew after each part so that a kill loses only what was under way.

    Args:
        script: name of the benchmark.
        settings: dataclass of its arguments.
        device: what was measured.
        path: JSON file; None keeps everything in memory.
    """

    def __init__(self, script: str, settings: object, device: torch.device, path: Path | None) -> None:
        self.script = script
        self.path = path
        self.facts = facts(device)
        given = asdict(settings) if is_dataclass(settings) and not isinstance(settings, type) else {}
        # Results are shared: how files and folders are called, not where they lie on a machine.
        self.settings = {
            name: value.name if isinstance(value, Path) else value
            for name, value in given.items()
            if name not in ("json", "out")
        }
        self.records: list[Record] = []
        self.missing: list[dict[str, Label]] = []
        self.notes: dict[str, Any] = {}

    def add(self, *records: Record) -> None:
        """Take records in."""
        self.records += records

    def miss(self, name: str, reason: str, **labels: Label) -> None:
        """Name what could not be measured, and why."""
        self.missing.append({"name": name, "reason": reason, **labels})

    def select(self, unit: str, **labels: Label) -> list[Record]:
        """Return the records of a unit whose labels contain the given ones."""
        return [
            entry
            for entry in self.records
            if entry.unit == unit and all(entry.labels.get(key) == value for key, value in labels.items())
        ]

    def content(self) -> dict[str, Any]:
        """Return everything as JSON takes it."""
        return {
            "script": self.script,
            "facts": self.facts,
            "settings": self.settings,
            "records": [asdict(entry) for entry in self.records],
            "missing": self.missing,
            "notes": self.notes,
        }

    def save(self) -> None:
        """Write the JSON file, if one was asked for: beside, then renamed."""
        if self.path is None:
            return
        write_json(self.path, self.content())


def write_json(path: Path, content: object) -> None:
    """Write JSON such that a reader sees the former file or the new one, never half of it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    beside = path.with_name(path.name + ".part")
    beside.write_text(json.dumps(content, indent=1, default=str) + "\n", "utf-8")
    beside.replace(path)


def read_json(path: Path) -> dict[str, Any]:
    """Return a JSON file's content, as far as there is one."""
    try:
        content = json.loads(path.read_text("utf-8"))
    except (OSError, ValueError):
        return {}
    return content if isinstance(content, dict) else {}
