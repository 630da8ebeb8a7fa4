"""Without FFCV, prepared pixels are trained on and evaluated; what needs FFCV says so in one line."""

from __future__ import annotations

import os
import shutil
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


@pytest.fixture(autouse=True)
def no_ffcv(monkeypatch, tmp_path):
    """Neither this process nor those that it starts can import FFCV or numba."""
    for name in ("ffcv", "numba", *sys.modules):
        if name.split(".")[0] in ("ffcv", "numba") or name == "fastpeer.data.box_decoder":
            monkeypatch.setitem(sys.modules, name, None)
    for name in ("ffcv", "numba"):
        (tmp_path / f"{name}.py").write_text("raise ImportError('there is none')", "utf-8")
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join((str(tmp_path), str(ROOT))))


def test_pixels_are_trained_on_and_evaluated(fastpeer, tmp_path):
    run = tmp_path / "run"
    fastpeer("train tiny.toml --train.max-steps 6 --quiet --out", run).succeeded()
    table = fastpeer("eval --attacks clean --checkpoints last", run).succeeded().out
    assert "clean" in table
    fastpeer("info", run).succeeded()


def test_ffcv_where_it_is_asked_for_is_refused(fastpeer, tmp_path):
    fastpeer("train tiny.toml --data.reader ffcv --out", tmp_path / "run").refused(
        "FFCV", "--data.reader numpy"
    )


def test_jpegs_are_refused(fastpeer, workshop, tmp_path):
    folder = Path(shutil.copytree(workshop / "data" / "photos", tmp_path / "jpegs"))
    file = folder / "dataset.json"
    file.write_text(file.read_text("utf-8").replace('"name"', '"encoding": "jpeg", "name"', 1), "utf-8")
    words = ("--data", folder, "--out", tmp_path / "run", "--data.reader")
    fastpeer("train tiny.toml --data.size 8", *words, "auto").refused("FFCV", "without --jpeg")
    fastpeer("train tiny.toml --data.size 8", *words, "numpy").refused("must be ffcv or auto")


def test_preparing_says_what_is_missing(fastpeer, workshop, tmp_path):
    line = f"prep --dataset folder --source {workshop}/sources/photos --quiet --out"
    fastpeer(line, tmp_path / "out").refused("FFCV", "there is none", "pip install ffcv")
