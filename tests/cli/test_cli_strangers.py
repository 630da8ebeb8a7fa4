"""Run folders made to harm: links that lead out, pipes, states of other shapes, names that steer."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest
import torch
from cli_files import results, snapshot

from fastpeer.checkpoint import load_state
from fastpeer.errors import printable
from fastpeer.manifest import MANIFEST, write_manifest

STEERING = "x\x1b[2J\x07\u202e\ny"


@pytest.fixture
def outside(tmp_path: Path) -> Path:
    """Somebody's folder, which nothing may be written in."""
    folder = tmp_path / "outside"
    folder.mkdir()
    (folder / "keys").write_text("secret\n")
    return folder


@pytest.mark.parametrize(
    ("part", "target"),
    [
        ("metrics.jsonl", "keys"),
        (".results.json.new", "keys"),
        ("verdicts", "."),
        ("checkpoints/.store/last-7", "."),
    ],
)
def test_nothing_is_written_through_a_link(
    fastpeer, finished: Path, outside: Path, part: str, target: str
) -> None:
    (finished / part).unlink(missing_ok=True)
    (finished / part).symlink_to(outside / target)
    before = snapshot(outside)
    for line in ("train --resume --train.epochs 4 --quiet --out", "eval --attacks clean --quiet", "info"):
        fastpeer(line, finished).refused(f"{part} leads out of the run's folder")
    assert f"{part} leads out" in fastpeer("runs", finished).succeeded().out
    assert snapshot(outside) == before


def test_results_beside_weights_do_not_follow_a_link(fastpeer, finished: Path, outside: Path) -> None:
    weights = outside.parent / "net.safetensors"
    weights.write_bytes((finished / "checkpoints" / "best" / "student.safetensors").read_bytes())
    weights.with_name(".net.safetensors.results.json.new").symlink_to(outside / "keys")
    outcome = fastpeer("eval --attacks clean --data data/photos --quiet", weights)
    warning, refusal = outcome.err.splitlines()
    assert "the attacks go on" in warning
    assert refusal.startswith("fastpeer: ")
    assert outcome.code == 2
    assert "net.safetensors.results" in refusal
    assert (outside / "keys").read_text() == "secret\n"


def test_a_pipe_is_not_waited_for(fastpeer, finished: Path) -> None:
    os.mkfifo(finished / "results.json")
    fastpeer("eval --attacks clean", finished).refused("results.json", "pipe or device")
    assert "pipe or device" in fastpeer("runs", finished).succeeded().out


def test_a_file_with_holes_is_not_read(fastpeer, finished: Path) -> None:
    (finished / "results.json").touch()
    os.truncate(finished / "results.json", 1 << 40)
    fastpeer("eval --attacks clean", finished).refused("results.json", "larger than")


@pytest.mark.parametrize(
    ("path", "value"),
    [
        (("position", "in_epoch"), 6),
        pytest.param(("position", "step"), -1, marks=pytest.mark.soak),
        pytest.param(("summary", "best"), {"epoch": 0}, marks=pytest.mark.soak),
        pytest.param(("interval", "losses"), torch.zeros(1 << 10), marks=pytest.mark.soak),
        pytest.param(("optimizer", "state", 0, "momentum_buffer"), None, marks=pytest.mark.soak),
        (("optimizer", "state", 0, "momentum_buffer"), torch.zeros(3)),
    ],
)
def test_a_state_that_no_run_leaves_is_refused(
    fastpeer, finished: Path, path: tuple[Any, ...], value: object
) -> None:
    folder = (finished / "checkpoints" / "last").resolve()
    state = load_state(folder)
    part = state
    for name in path[:-1]:
        part = part[name]
    part[path[-1]] = value
    torch.save(state, folder / "state.pt")
    (folder / MANIFEST).unlink()
    write_manifest(folder)
    fastpeer("train --resume --train.epochs 4 --quiet --out", finished).refused("state.pt", "not this run's")


def test_no_name_steers_a_terminal(fastpeer, finished: Path) -> None:
    fastpeer("eval --attacks clean --checkpoints best --quiet", finished).succeeded()
    facts = json.loads((finished / "run.json").read_text())
    facts["data"] |= {"name": STEERING, "folder": STEERING}
    facts |= {"device": STEERING, "teachers": {STEERING: {"file": STEERING}}}
    (finished / "run.json").write_text(json.dumps(facts))
    found = json.loads((finished / "results.json").read_text())
    found["results"][0] |= {"target": STEERING, "dataset": STEERING}
    (finished / "results.json").write_text(json.dumps(found))
    run = finished.rename(finished.with_name(STEERING))
    lines = ("runs", "info", "eval --data data/photos --attacks clean --checkpoints best")
    shown = [fastpeer(line, run).succeeded().out for line in lines]
    for text in shown:
        assert all(printable(line) == line for line in text.split("\n"))
        assert "\\x1b[2J" in text
    assert len(results(run / "results.json")) == 2
