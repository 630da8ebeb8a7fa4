"""All kinds one after another, and what came of them: python -m tests.fuzz.table [SHARE OF THE COUNTS]."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from typing import Any

SEED = 13
COUNTS = {
    "recipe": 2500,
    "manifest": 2000,
    "beton": 1500,
    "known beton": 500,
    "weights": 1500,
    "archive": 1000,
    "image": 1500,
    "command line": 1000,
    "state of a run": 400,
    "checkpoints/last/state.pt": 200,
    "checkpoints/last/student.safetensors": 200,
    "checkpoints/last/settings.toml": 200,
    "known state.pt": 500,
    "known student.safetensors": 500,
    "known settings.toml": 500,
    "checkpoints/last/manifest.json": 500,
    "config.toml": 300,
    "run.json": 300,
    "metrics.jsonl": 500,
    "results.json": 500,
    "verdicts": 500,
}
"""16,600 in all."""


def fuzz_apart(kind: str, count: int) -> dict[str, Any]:
    """Return the report of a kind, tried in a process of its own, whose end tells of a crash."""
    began = time.perf_counter()
    words = [sys.executable, "-B", "-X", "faulthandler", "-m", "tests.fuzz.fuzzing", kind, str(SEED)]
    process = subprocess.run([*words, str(count)], capture_output=True, text=True)
    assert process.returncode == 0, process.stderr[-3000:]
    report: dict[str, Any] = json.loads(process.stdout.splitlines()[-1])
    return {**report, "seconds": round(time.perf_counter() - began)}


def row(kind: str, report: dict[str, Any]) -> str:
    """Return a line of the table."""
    counts = report["counts"]
    outcomes = ", ".join(f"{count} {outcome}" for outcome, count in sorted(counts.items()))
    return f"{kind:<40}{sum(counts.values()):>6}{report['seconds']:>6} s   {outcomes}"


if __name__ == "__main__":
    share = float(sys.argv[1]) if len(sys.argv) > 1 else 1.0
    for kind, count in COUNTS.items():
        report = fuzz_apart(kind, max(1, round(share * count)))
        print(row(kind, report), *report["failures"], *report["outside"], sep="\n    ", flush=True)
