"""No changed file, recipe or command line ends in a traceback, a crash, a hang or a write elsewhere."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.fuzz.fuzzing import fuzz
from tests.fuzz.kinds import KINDS

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
}
"""11,500 in all."""


@pytest.mark.parametrize("kind", KINDS)
def test_a_few(tmp_path: Path, kind: str) -> None:
    outcomes, failures = fuzz(kind, SEED, 10, tmp_path)
    assert failures == []
    assert sum(outcomes.values()) == 10


@pytest.mark.soak
@pytest.mark.parametrize("kind", KINDS)
def test_thousands(kind: str) -> None:
    """Run in a process of their own, whose end tells of a crash, and where all that is written is seen."""
    began = time.perf_counter()
    words = [sys.executable, "-B", "-X", "faulthandler", "-m", "tests.fuzz.fuzzing"]
    words += [kind, str(SEED), str(COUNTS[kind])]
    process = subprocess.run(words, capture_output=True, text=True)
    assert process.returncode == 0, process.stderr[-3000:]
    report = json.loads(process.stdout.splitlines()[-1])
    print(kind, report["counts"], f"{time.perf_counter() - began:.0f} s")
    assert report["failures"] == []
    assert report["outside"] == []
    assert kind != "known beton" or report["counts"].keys() <= {"refused", "accepted"}
