"""The circumstances of a measurement: a number without them means nothing."""

import datetime
import os
import platform
import subprocess
from pathlib import Path
from typing import Any

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

    Where a copy of the tree without its history is measured, FASTPEER_COMMIT may name the commit.
    """
    head = _output("git", "-C", str(ROOT), "rev-parse", "HEAD")
    if head is None:
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
