"""`fastpeer compare`: costs and accuracies side by side."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
from safetensors.torch import load_file

from fastpeer.cli.compare import _millions
from fastpeer.models import build_model
from fastpeer.models.weight_facts import WeightFacts
from fastpeer.models.weights import save_weights


def compared(fastpeer, *words: object) -> tuple[dict[str, dict[str, object]], list[str]]:
    """The rows by their names, and the notes."""
    document = json.loads(fastpeer("compare --format json", *words).succeeded().out)
    (table,) = document["tables"]
    return {row["network"]: row for row in table["rows"]}, document["notes"]


def test_student_and_peer_with_what_eval_found(fastpeer, finished: Path) -> None:
    fastpeer("eval --checkpoints best --attacks clean,pgd20", finished).succeeded()
    rows, notes = compared(fastpeer, finished, "--rounds", 1)
    assert list(rows) == ["finished best", "finished best: its peer"]
    row, peer = rows.values()
    weights = finished / "checkpoints" / "best" / "student.safetensors"
    trained = [value for name, value in load_file(weights).items() if "running" not in name]
    assert row["parameters"] == sum(value.numel() for value in trained if value.dim())
    assert row["file, MB"] == round(weights.stat().st_size / 1e6, 2)
    stored = json.loads((finished / "results.json").read_text("utf-8"))["results"]
    assert row["clean"] == round(stored[0]["accuracy"], 2)
    assert row["cpu ms, batch 128"] > 0
    assert peer["clean"] is row["AA"] is None
    missing = next(note for note in notes if note.startswith("finished best: AA"))
    assert missing.endswith(f"fastpeer eval {finished} --checkpoints best --attacks aa")


def test_runs_of_other_data_are_said_to_be_such(fastpeer, original: Path, tmp_path: Path) -> None:
    facts = WeightFacts(network="resnet8", classes=10, dataset="cifar10", size=(8, 8))
    save_weights(build_model("resnet8", 10), tmp_path / "net.safetensors", facts)
    rows, notes = compared(fastpeer, original, tmp_path / "net.safetensors", "--no-latency")
    assert "net.safetensors" in rows
    assert any(note.endswith("--model resnet8 --data DIR --attacks clean,pgd20,aa") for note in notes)
    assert any("different data sets" in note and "cifar10 (net.safetensors)" in note for note in notes)
    assert not any("batch 1" in heading for heading in rows["net.safetensors"])


def test_a_missing_teacher_is_said(fastpeer, finished: Path) -> None:
    facts = json.loads((finished / "run.json").read_text("utf-8"))
    facts["teachers"] = {"teacher": {"file": "gone.safetensors", "network": "resnet8", "mean": [], "std": []}}
    (finished / "run.json").write_text(json.dumps(facts), "utf-8")
    rows, notes = compared(fastpeer, finished, "--no-latency")
    assert len(rows) == 2
    assert any("its teacher is left out: gone.safetensors" in note for note in notes)


def test_a_teacher_of_ones_own_code_needs_trust(fastpeer, finished: Path, tmp_path: Path) -> None:
    save_weights(build_model("resnet8", 4), tmp_path / "teacher.safetensors")
    facts = json.loads((finished / "run.json").read_text("utf-8"))
    teacher = {"file": str(tmp_path / "teacher.safetensors"), "network": "boom:Net", "mean": [], "std": []}
    facts["teachers"] = {"teacher": teacher}
    (finished / "run.json").write_text(json.dumps(facts), "utf-8")
    _, notes = compared(fastpeer, finished, "--no-latency")
    assert any("boom:Net" in note and "--trust" in note for note in notes)


@pytest.mark.parametrize("form", ["text", "csv", "latex", "markdown"])
def test_formats(fastpeer, original: Path, form: str) -> None:
    shown = fastpeer(f"compare --no-latency --format {form}", original)
    assert shown.code == 0
    assert re.search(r"original best\W+77,?652", shown.out)


@pytest.mark.parametrize(
    ("line", "told"),
    [
        ("compare nosuch", "nosuch: neither a run folder"),
        ("compare --rounds 0", "--rounds must be 1 or more"),
        ("compare --format tex", "--format must be one of"),
    ],
)
def test_wrong_words(fastpeer, line: str, told: str) -> None:
    fastpeer(line).refused(told)


@pytest.mark.parametrize(
    ("count", "shown"), [(0, "0"), (2_140, "0.002"), (10_000, "0.01"), (12_496_000, "12.50")]
)
def test_small_counts_are_not_rounded_to_nothing(count: int, shown: str) -> None:
    assert _millions(count) == shown
