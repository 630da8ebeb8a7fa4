"""`fastpeer report` and `fastpeer watch`, as a user meets them."""

from __future__ import annotations

import errno
import json
import os
import re
import shutil
import sys
from pathlib import Path

import numpy as np
import pytest

from fastpeer.cli.main import main
from fastpeer.run_folder import RunFolder

FILES = "--no-network --no-figures"
SCRIPT = "<script>alert(1)</script>"


@pytest.fixture
def run(original: Path, tmp_path: Path) -> Path:
    return shutil.copytree(original, tmp_path / "run", symlinks=True)


def html(folder: Path) -> str:
    return (folder / "report.html").read_text("utf-8")


def test_a_page_has_charts_pictures_and_the_commands_for_what_is_missing(fastpeer, run):  # type: ignore[no-untyped-def]
    found = fastpeer("report --images 16 --no-figures --device cpu", run)
    assert found.code == 0, found.err
    page = html(run / "report")
    for title in ("Losses", "Learning rate", "Speed", "Accuracy by class", "Loss around the weights"):
        assert f"<figcaption>{title}</figcaption>" in page
    assert f"<code>fastpeer eval {run}</code>" in page
    assert page.count("data:image/png") >= 4 * 8
    assert not re.search(r'(src|href)="(?!data:|#)', page)
    # Measured once: the network is not even read again.
    (kept,) = (run / "report").glob("measured-*.npz")
    written = kept.stat().st_mtime_ns
    assert fastpeer("report --images 16 --no-figures --device cpu", run).out.count("…") == 0
    assert kept.stat().st_mtime_ns == written
    assert RunFolder(run).foreign_files == []


@pytest.mark.soak
def test_charts_are_files_too(fastpeer, run):  # type: ignore[no-untyped-def]
    assert fastpeer("report --no-network", run).code == 0
    names = {file.name for file in (run / "report" / "figures").iterdir()}
    assert {"losses.png", "losses.svg", "selection.png", "lr.svg"} <= names


def test_a_folder_that_cannot_be_written_is_refused_before_attacks(fastpeer, run, monkeypatch):  # type: ignore[no-untyped-def]
    def refuse(**_: object) -> None:
        raise OSError(errno.EROFS, os.strerror(errno.EROFS))

    monkeypatch.setattr("fastpeer.files.TemporaryFile", refuse)
    found = fastpeer("report --no-figures --device cpu", run)
    assert (found.code, found.out) == (2, "")
    assert "report: cannot be written (Read-only file system): name another --out" in found.err


def test_a_missing_extra_is_named(fastpeer, run, monkeypatch):  # type: ignore[no-untyped-def]
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    found = fastpeer("report", run)
    assert found.code == 2
    assert "pip install 'fastpeer[report]'" in found.err


def test_class_names_are_text(fastpeer, run, monkeypatch):  # type: ignore[no-untyped-def]
    from fastpeer.report import measurements

    images = np.zeros((8, 3, 8, 8), np.float32)
    arrays = {
        "classes": np.array([SCRIPT, "ن" * 300]), "labels": np.array([0, 1] * 4),
        "clean": np.array([0, 1] * 4),
        "attacked": np.array([1, 0] * 4), "shown_clean": images, "shown_attacked": images,
        "gradient_student": images[:, 0], "epsilons": np.array([0.0, 0.1]), "right": np.array([8, 0]),
        "epsilon_images": np.array(8), "alphas": np.linspace(-1, 1, 3), "line_clean": np.ones(3),
        "line_attacked": np.ones(3), "plane": np.ones((3, 3)), "embedded_labels": np.array([0, 1] * 4),
        "embedded_student": np.arange(32.0).reshape(16, 2), "weights": np.array(["run last", "0" * 64]),
    }  # fmt: skip
    monkeypatch.setattr(measurements, "measure", lambda *_: arrays)
    assert fastpeer("report --no-figures --device cpu", run).code == 0
    page = html(run / "report")
    assert SCRIPT not in page
    assert page.count("&lt;script&gt;alert(1)") > 8
    assert "ن" * 300 in page


def test_a_half_written_run_has_a_page_that_says_what_cannot_be_read(fastpeer, run):  # type: ignore[no-untyped-def]
    metrics = run / "metrics.jsonl"
    metrics.write_text('{"step": "x"}\n[1]\n' + metrics.read_text() + '{"epoch": 2, "st')
    (run / "results.json").write_text("{}")
    shutil.rmtree(run / "checkpoints")
    assert fastpeer("report --no-figures --device cpu", run).code == 0
    page = html(run / "report")
    assert "left out what cannot be read, line 1, 2, " in page
    assert "not results of fastpeer eval" in page
    assert "holds no checkpoint yet" in page
    assert "<figcaption>Losses</figcaption>" in page


def test_runs_of_different_data_are_kept_apart(fastpeer, run, tmp_path):  # type: ignore[no-untyped-def]
    other = shutil.copytree(run, tmp_path / "other", symlinks=True)
    third = shutil.copytree(run, tmp_path / "third", symlinks=True)
    facts = json.loads((third / "run.json").read_text())
    facts["data"]["test_sha256"] = "f" * 64
    (third / "run.json").write_text(json.dumps(facts))
    assert fastpeer(f"report {FILES} --out {tmp_path / 'two'}", run, other).code == 0
    assert "Different test images" not in html(tmp_path / "two")
    assert fastpeer(f"report {FILES} --out {tmp_path / 'three'}", run, other, third).code == 0
    page = html(tmp_path / "three")
    assert "Different test images" in page
    assert "third clean" not in page
    assert "other clean" in page


def test_what_cannot_be_is_one_line_and_nothing_is_lost(fastpeer, run, tmp_path):  # type: ignore[no-untyped-def]
    mine = tmp_path / "mine"
    mine.mkdir()
    (mine / "thesis.tex").write_text("mine")
    for words, line in (
        (f"--out {mine}", "holds thesis.tex, which no report wrote"),
        (f"--out {mine / 'thesis.tex'}", "--out must be a folder"),
        ("--checkpoint bset", "unknown checkpoint bset"),
        ("--images 3", "must be"),
    ):
        found = fastpeer(f"report {FILES} {words}", run)
        assert found.code == 2
        assert line in found.err
        assert found.err.count("\n") == 1
    found = fastpeer("report --no-figures", tmp_path / "nowhere")
    assert (found.code, found.err.count("\n")) == (2, 1)
    assert [entry.name for entry in mine.iterdir()] == ["thesis.tex"]


def test_classes_of_ones_own_need_trust(fastpeer, run):  # type: ignore[no-untyped-def]
    config = run / "config.toml"
    config.write_text(config.read_text().replace('student = "resnet8"', 'student = "evil:Net"'))
    assert fastpeer("report --no-figures --device cpu", run).code == 0
    assert "model.student was resnet8, now evil:Net" in html(run / "report")
    config.write_text(config.read_text().replace('method = "peeraid"', 'method = "evil.method"'))
    found = fastpeer("report --no-figures --device cpu", run)
    assert (found.code, found.err.count("\n")) == (2, 1)
    assert "--trust" in found.err


def test_watch_prints_plain_lines_into_a_pipe_and_ends(run, capsys):  # type: ignore[no-untyped-def]
    assert main(["watch", str(run)]) == 0
    printed = capsys.readouterr().out
    assert printed.startswith(f"{run}  finished\n")
    assert "step 15 of 15" in printed
    assert "\x1b" not in printed
    assert main(["watch", str(run / "none")]) == 2


@pytest.mark.parametrize("width", [60, 80, 120])
def test_watch_fits_the_terminal(run, width):  # type: ignore[no-untyped-def]
    from fastpeer.cli.watch import _lines
    from fastpeer.report.records import read_run

    _, *lines = _lines(read_run(RunFolder(run), "run"), width)
    assert len(lines) > 3
    assert max(map(len, lines)) <= width
