"""What `fastpeer runs` tells of runs that finished, stopped, failed, run, never began or are damaged."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest

from fastpeer.checkpoint import load_state
from fastpeer.models import build_model
from fastpeer.models.weight_facts import WeightFacts
from fastpeer.models.weights import save_weights
from fastpeer.run_folder import RunFolder


def saved_at(run: Path, step: int) -> None:
    """Let the last checkpoint be that of a step."""
    weights = RunFolder(run).checkpoint("last") / "student.safetensors"
    weights.unlink()
    save_weights(build_model("resnet8", 4), weights, WeightFacts(network="resnet8", step=step))


def cut(run: Path, step: int) -> None:
    """Leave no record of later steps."""
    lines = (run / "metrics.jsonl").read_text().splitlines(keepends=True)
    (run / "metrics.jsonl").write_text("".join(line for line in lines if json.loads(line)["step"] <= step))


@pytest.fixture
def runs(original: Path, tmp_path: Path) -> Path:
    """A folder of runs, each an hour older than the one before."""
    folder = tmp_path / "runs"
    names = ["finished", "stopped", "failed", "new", "half"]
    for name in names:
        shutil.copytree(original, folder / name, symlinks=True)
    saved_at(folder / "stopped", 7)
    cut(folder / "stopped", 7)
    saved_at(folder / "failed", 5)
    cut(folder / "failed", 8)
    with (folder / "failed" / "metrics.jsonl").open("a") as file:
        file.write('{"epoch": 1, "st')
    shutil.rmtree(folder / "new" / "checkpoints")
    (folder / "new" / "metrics.jsonl").unlink()
    (folder / "half" / "config.toml").unlink()
    for age, name in enumerate(names):
        file = "metrics.jsonl" if name != "new" else "run.json"
        moment = time.time() - 3600 * (age + 2)
        os.utime(folder / name / file, (moment, moment))
    (folder / "notes").mkdir()
    return folder


def rows(shown: str) -> list[list[str]]:
    """The cells of a table's lines."""
    return [[cell.strip() for cell in line.split("│")[1:-1]] for line in shown.splitlines() if "│" in line]


def test_states_of_runs_newest_first(fastpeer, runs: Path) -> None:
    shown = fastpeer("runs", runs).succeeded().out
    found = {row[0]: row[1:] for row in rows(shown)}
    assert [Path(name).name for name in found] == ["finished", "stopped", "failed", "new"]
    assert {Path(name).name: cells[0] for name, cells in found.items()} == {
        "finished": "finished",
        "stopped": "stopped at step 7 of 15",
        "failed": "failed after step 8 of 15, saved at 5",
        "new": "no step saved",
    }
    assert [cells[-1] for cells in found.values()] == ["2 h", "3 h", "4 h", "5 h"]
    assert shown.splitlines()[-1] == f"{runs / 'half'}: damaged (config.toml missing)"
    assert "test clean" not in shown
    assert "notes" not in shown


def test_accuracies_are_those_of_the_best_student(fastpeer, runs: Path) -> None:
    run = runs / "finished"
    best = load_state(RunFolder(run).checkpoint("best"))["selected"]
    cells = rows(fastpeer("runs", run).succeeded().out)[-1]
    assert cells[2:7] == ["peeraid", "resnet8", "folder", f"{best['clean']:.2f}", f"{best['pgd1']:.2f}"]
    # Of a part of the images, or in another ball: these stand beside no other run's.
    fastpeer("eval --attacks clean --examples 3 --quiet", run).succeeded()
    fastpeer("eval --attacks pgd20 --epsilon 1/255 --quiet", run).succeeded()
    assert "test " not in fastpeer("runs", runs).succeeded().out.splitlines()[1]
    fastpeer("eval --attacks clean,pgd20 --checkpoints last,best --quiet", run).succeeded()
    shown = fastpeer("runs", runs).succeeded().out
    stored = {(entry["target"].split()[-1], entry["attack"]): f"{entry['accuracy']:.2f}"
              for entry in json.loads((run / "results.json").read_text())["results"]
              if entry["images"] == entry["total"] and entry["epsilon"] == 8 / 255}  # fmt: skip
    assert "test clean" in shown
    assert "test AA" not in shown
    assert rows(shown)[0][7:9] == [stored["best", "clean"], stored["best", "pgd20"]]


def test_pytorch_is_not_loaded_for_a_list(runs: Path) -> None:
    program = (
        "import sys; from fastpeer.cli.main import main; code = main(sys.argv[1:]);"
        " sys.exit(code or str({'torch', 'scipy'} & set(sys.modules) or ''))"
    )
    done = subprocess.run([sys.executable, "-c", program, "runs", runs], capture_output=True, text=True)
    assert "finished" in done.stdout
    assert done.stderr == "\n"


def test_a_run_that_is_trained_is_running(fastpeer, runs: Path) -> None:
    with RunFolder(runs / "stopped").locked():
        assert "running, step 7 of 15" in fastpeer("runs", runs).succeeded().out
    assert "running" not in fastpeer("runs", runs).succeeded().out


def test_runs_of_older_versions_tell_their_length_by_their_epochs(fastpeer, runs: Path) -> None:
    file = runs / "stopped" / "run.json"
    facts = json.loads(file.read_text())
    assert facts.pop("steps_per_epoch") == 5
    file.write_text(json.dumps(facts))
    assert "stopped at step 7 of 15" in fastpeer("runs", runs).succeeded().out


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("config.toml", "garbage"), ("run.json", "{}"), ("metrics.jsonl", '{"step": "x"}'),
        ("results.json", "[]"), ("checkpoints/last/student.safetensors", "garbage"),
        ("metrics.jsonl", '{"step": 3, "epoch": 0, "selection": {}}'),
    ],
)  # fmt: skip
def test_a_damaged_run_is_one_line(fastpeer, runs: Path, name: str, content: str) -> None:
    (runs / "stopped" / name).write_text(content)
    outcome = fastpeer("runs", runs).succeeded()
    lines = [line for line in outcome.out.splitlines() if line.startswith(f"{runs / 'stopped'}: damaged (")]
    assert len(lines) == 1
    assert len(rows(outcome.out)) == 3


@pytest.mark.parametrize("width", [40, 60, 80, 120])
def test_no_terminal_cuts_names_or_figures(
    fastpeer, runs: Path, monkeypatch: pytest.MonkeyPatch, width: int
) -> None:
    for name, value in {"FORCE_COLOR": "1", "TTY_COMPATIBLE": "1", "COLUMNS": str(width)}.items():
        monkeypatch.setenv(name, value)
    monkeypatch.chdir(runs.parent)
    plain = re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]", "", fastpeer("runs").out)
    assert "…" not in plain
    assert all(f"runs/{name}" in plain for name in ("finished", "stopped", "failed", "new", "half"))
    assert "stopped at step 7 of 15" in plain


def test_no_runs(fastpeer, tmp_path: Path) -> None:
    fastpeer("runs", tmp_path).refused(str(tmp_path), "fastpeer train")
    fastpeer("runs nosuch").refused("no run in nosuch/")
