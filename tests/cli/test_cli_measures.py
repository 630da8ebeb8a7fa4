"""`fastpeer eval`: curves over the radius, corrupted images, certified radii."""

from __future__ import annotations

import json
import re
from itertools import count
from pathlib import Path

import numpy as np
import pytest
import torch
from cli_files import results, rows

from fastpeer.api import load
from fastpeer.evaluation import certificates
from fastpeer.evaluation.smoothing import certify

pytestmark = pytest.mark.usefixtures("wide")


def test_a_curve(fastpeer, finished: Path) -> None:
    shown = fastpeer("eval --checkpoints best --attacks pgd2 --curve 0,4,8,16/255", finished).succeeded().out
    stored = results(finished / "results.json")
    assert [entry["attack"] for entry in stored] == ["clean", "pgd2", "pgd2", "pgd2"]
    sizes = [(entry["epsilon"], entry["step_size"]) for entry in stored[1:]]
    assert sizes == [(4 / 255, 1 / 255), (8 / 255, 2 / 255), (16 / 255, 4 / 255)]
    assert "accuracy in % over L-infinity epsilon" in shown
    heads = next(line for line in shown.splitlines() if "student" in line)
    assert re.findall(r"[\w/]+", heads) == ["student", "0", "4/255", "8/255", "16/255"]
    assert rows(shown)["finished best"] == [f"{entry['accuracy']:.2f}" for entry in stored]
    fastpeer("eval --checkpoints best --attacks pgd2", finished).succeeded()
    assert len(results(finished / "results.json")) == 4


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        ("--curve 8/255", ["--curve must be two or more increasing radii"]),
        ("--curve 8,4/255", ["--curve must be two or more increasing"]),
        ("--curve 0,x/255", ["--curve must be a number"]),
        ("--curve 0,8", ["--curve must be from 0 to 1", "8/255"]),
        ("--curve 0,", ["--curve must be"]),
        ("--norm l2 --curve 0,500", ["--curve must be at most"]),
    ],
)
def test_wrong_curves_are_refused(fastpeer, finished: Path, flags: str, words: list[str]) -> None:
    fastpeer(f"eval {flags}", finished).refused(*words)
    assert not (finished / "results.json").exists()


@pytest.fixture
def corrupted(tmp_path: Path) -> Path:
    """Two images of each severity of fog, in CIFAR-10-C's layout."""
    folder = tmp_path / "photos-c"
    folder.mkdir()
    np.save(folder / "labels.npy", np.tile([0, 3], 5).astype(np.uint8))
    np.save(folder / "fog.npy", np.random.default_rng(0).integers(0, 256, (10, 8, 8, 3), np.uint8))
    return folder


def test_corrupted_images(fastpeer, finished: Path, corrupted: Path) -> None:
    outcome = fastpeer("eval --checkpoints last --corruptions", corrupted, finished).succeeded()
    assert "2 of each severity" in outcome.out
    assert "14 of its 15 are missing" in outcome.out
    entry = json.loads((finished / "results.json").read_text("utf-8"))["corruptions"][0]
    model, images = load(finished), np.load(corrupted / "fog.npy").reshape(5, 2, 8, 8, 3)
    with torch.no_grad():
        found = [model(torch.from_numpy(part).permute(0, 3, 1, 2) / 255).argmax(1) for part in images]
    correct = [int((classes == torch.tensor([0, 3])).sum()) for classes in found]
    assert entry["corruptions"][0]["correct"] == correct
    assert entry["mean_accuracy"] == pytest.approx(10 * sum(correct))
    shown = fastpeer("eval --checkpoints last --format json --corruptions", corrupted, finished)
    assert json.loads(shown.out)["tables"][0]["rows"][0]["severity 5"] == pytest.approx(50 * correct[4])
    assert len(results(finished / "results.json")) == 0


def test_certificates_go_on_where_they_were_stopped(
    fastpeer, finished: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    line = "eval --checkpoints last --certify 0.1 --certify-n0 5 --certify-n 40 --examples 6"
    fastpeer(line, finished).succeeded()
    file, certified = finished / "results.json", count()
    whole = json.loads(file.read_text("utf-8"))["certificates"][0]
    kept = finished / "verdicts" / whole["by_image"]
    text = kept.read_text("utf-8")
    kept.unlink()
    monkeypatch.setattr(certificates, "KEPT_EVERY", 0.0)

    def stopped(*words: object) -> object:
        if next(certified) == 4:
            raise KeyboardInterrupt
        return certify(*words)

    monkeypatch.setattr(certificates, "certify", stopped)
    assert fastpeer(line, finished).code == 130
    assert len(json.loads(kept.read_text("utf-8"))["images"]) == 4
    outcome = fastpeer(line, finished).succeeded()
    assert next(certified) == 7
    assert "goes on where it was stopped: image 5 of 6" in outcome.out
    assert json.loads(kept.read_text("utf-8"))["images"] == json.loads(text)["images"]
    again = json.loads(file.read_text("utf-8"))["certificates"]
    assert [entry | {"seconds": 0} for entry in again] == [whole | {"seconds": 0}]
    assert (whole["sigma"], whole["samples"], whole["alpha"], whole["trained_with_noise"]) == (
        0.1, 40, 0.001, False,
    )  # fmt: skip
    assert "was not trained on noisy images" in outcome.out


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        ("--corruptions nosuch", ["--corruptions nosuch", "labels.npy"]),
        ("--corruptions . --certify 0.5", ["--corruptions and --certify do not go together"]),
        ("--certify 0.5 --attacks clean", ["--certify and --attacks do not go together"]),
        ("--certify 0.5 --curve 0,8/255", ["--certify and --curve do not go together"]),
        ("--certify -1", ["certify", "-1"]),
        ("--certify 0.5 --certify-alpha 1", ["alpha", "between 0 and 1"]),
        ("--certify 0.5 --certify-n 9", ["--certify-n 9 can certify nothing"]),
    ],
)
def test_wrong_other_measures_are_refused(fastpeer, finished: Path, flags: str, words: list[str]) -> None:
    fastpeer(f"eval {flags}", finished).refused(*words)
    assert not (finished / "results.json").exists()
