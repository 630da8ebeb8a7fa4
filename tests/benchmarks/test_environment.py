"""The questions to a machine: what is missing is named, the rest is asked all the same."""

import json
import os
import subprocess
import sys
from pathlib import Path

from benchmarks.suite import environment

ROOT = Path(environment.__file__).parents[2]
ASK = "from benchmarks.suite import environment\nenvironment.main()"


def run(tmp_path, code=""):
    """Ask in a process of its own, after some Python that spoils it."""
    report = tmp_path / "report.json"
    words = ["environment.py", "--device", "cpu", "--json", str(report)]
    start = f"import sys; sys.argv = {words!r}; sys.path.insert(0, {str(ROOT)!r})\n"
    done = subprocess.run(
        [sys.executable, "-c", f"{start}{code}\n{ASK}"],
        capture_output=True, text=True, check=False,
        # FFCV makes numba compile when it is imported, for seconds; whether it can be imported is asked here.
        env={**os.environ, "NUMBA_DISABLE_JIT": "1"},
    )  # fmt: skip
    return done, json.loads(report.read_text("utf-8"))


def test_what_is_missing_is_named_and_fatal_only_where_nothing_else_makes_sense(tmp_path):
    done, report = run(tmp_path, "sys.modules['pooch'] = None")
    missing = [one["name"] for one in report["missing"]]
    assert done.returncode == 0, done.stderr
    assert "import pooch" in missing
    assert report["notes"]["answers"]["versions"]["fastpeer"]
    assert "failed: " in done.stdout.splitlines()[-1]


def test_without_pytorch_nothing_else_makes_sense(tmp_path):
    done, report = run(tmp_path, "sys.modules['torch'] = None")
    assert done.returncode == 1
    assert done.stderr.strip() == "nothing else makes sense without: import fastpeer.training.trainer"
    assert "import torch" in [one["name"] for one in report["missing"]]


def test_an_answer_may_be_any_error():
    def fail():
        raise SystemExit("out\nof luck")

    answer, failed, _ = environment.asked(fail)
    assert (answer, failed) == ("SystemExit: out of luck", True)


def test_a_machine_without_nvidia_smi_is_none_without_a_gpu(monkeypatch, tmp_path):
    monkeypatch.setenv("PATH", str(tmp_path))
    assert environment.told_by_driver().startswith("FileNotFoundError")
