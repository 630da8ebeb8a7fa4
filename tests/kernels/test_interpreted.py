"""The Triton kernels in Triton's interpreter, which has to be chosen before they are imported."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("triton")

ROOT = Path(__file__).parents[2]
FOLDER = ROOT / "tests" / "kernels" / "interpreted"


@pytest.mark.long
def test_kernels_pass_their_tests_interpreted():
    assert_passes("--hypothesis-profile", "brief", str(FOLDER))


@pytest.mark.soak
def test_kernels_pass_their_long_tests_interpreted():
    assert_passes("-m", "soak or hypothesis", "--hypothesis-profile", "soak", str(FOLDER))


def assert_passes(*words):
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", *words]
    environment = {name: value for name, value in os.environ.items() if not name.startswith("PYTEST_")}
    run = subprocess.run(
        command, cwd=ROOT, env={**environment, "TRITON_INTERPRET": "1"}, capture_output=True, text=True
    )
    assert run.returncode == 0, run.stdout + run.stderr
