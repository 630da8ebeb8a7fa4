"""`fastpeer eval --table` and `--surrogates`: the paper's tables that are no rows of recipes."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from cli_files import results, snapshot, weights

from fastpeer.evaluation.targets import find_targets
from fastpeer.evaluation.tutors import beside_their_peers


@pytest.fixture(autouse=True)
def wide(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "250")


def test_the_peer_stands_beside_its_student(fastpeer, finished: Path) -> None:
    outcome = fastpeer("eval --table 2 --checkpoints best", finished).succeeded()
    assert "finished best: peer" in outcome.out
    assert "f, PGD-20 of S" in outcome.out
    clean, own, students, student = results(finished / "results.json")
    sums = weights(finished)
    for entry in (clean, own, students):
        assert entry["weights_sha256"] == sums["checkpoints/best/peer.safetensors"]
        assert (entry["target"].endswith("finished best: peer"), entry["role"]) == (True, "peer")
    assert (
        student["weights_sha256"] == students["source_sha256"] == sums["checkpoints/best/student.safetensors"]
    )
    assert "role" not in student
    assert [entry["attack"] for entry in (clean, own, students, student)] == ["clean", *["pgd20"] * 3]
    assert students["source"] == student["target"]
    assert list(students["cosines"]) == ["clean, student's", "student's, own", "clean, own"]
    assert all(-1 <= value <= 1 for value in students["cosines"].values())
    # Each alone finds the same.
    fastpeer("eval --attacks clean,pgd20", finished / "checkpoints" / "best" / "peer.safetensors").succeeded()
    fastpeer("eval --attacks pgd20 --checkpoints best", finished).succeeded()
    found = results(finished / "results.json")
    assert [entry["correct"] for entry in found[-2:]] == [clean["correct"], own["correct"]]
    assert found[3]["correct"] == student["correct"]
    fastpeer("runs", finished).succeeded()


def test_examples_of_other_networks(fastpeer, finished: Path, original: Path, tmp_path: Path) -> None:
    other = Path(shutil.copytree(original, tmp_path / "other", symlinks=True))
    words = ["--surrogates", finished, other / "checkpoints" / "last" / "peer.safetensors"]
    outcome = fastpeer("eval --attacks clean,fgsm,pgd2 --checkpoints best", finished, *words).succeeded()
    assert "PGD-2 from " in outcome.out
    found = results(finished / "results.json")
    assert [(entry["attack"], "source" in entry) for entry in found] == [
        ("clean", False), *[("fgsm", True)] * 2, *[("pgd2", True)] * 2
    ]  # fmt: skip
    # Its own examples are those that it is attacked with.
    fastpeer("eval --attacks fgsm,pgd2 --checkpoints best", finished).succeeded()
    own = {entry["attack"]: entry["correct"] for entry in results(finished / "results.json")[5:]}
    assert own == {
        name: next(e["correct"] for e in found if e["attack"] == name) for name in ("fgsm", "pgd2")
    }


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("eval --table 1", ["--table must be 2, 6 or 7", "--attacks clean,fgsm,pgd20,aa", "got 1"]),
        ("eval --table 7 --attacks clean", ["--table 7 has its own attacks"]),
        (
            "eval --table 6",
            ["--table 6 needs its surrogates", "train some by --method pgd-at, and name runs"],
        ),
        ("eval --table 7 --surrogates data", ["--surrogates are for --attacks and --table 6"]),
        ("eval --attacks fgsm,aa --surrogates data", ["aa", "its own network"]),
        ("eval --table 6 --surrogates data", ["data: neither a run folder nor a file with weights"]),
    ],
)
def test_what_no_table_can_be_made_of(fastpeer, finished: Path, line: str, words: list[str]) -> None:
    before = snapshot(finished)
    fastpeer(f"{line} --checkpoints best", finished).refused(*words)
    assert snapshot(finished) == before


def test_a_selected_average_has_no_peer(finished: Path, caplog: pytest.LogCaptureFixture) -> None:
    targets = find_targets([finished], "all", False)
    assert [target.checkpoint for target in targets] == ["last", "swa", "best", "best-swa"]
    assert beside_their_peers(targets) == targets[:3]
    assert "finished best-swa: left out, no peer is kept beside it" in caplog.text


def test_a_table_of_tutors_needs_one(fastpeer, finished: Path, tmp_path: Path) -> None:
    weights_of_none = tmp_path / "net.safetensors"
    shutil.copy(finished / "checkpoints" / "best" / "student.safetensors", weights_of_none)
    fastpeer("eval --table 2 --data data/photos", weights_of_none).refused("belongs to no run", "--table 2")
    peer = (finished / "checkpoints" / "best" / "peer.safetensors").resolve()
    peer.unlink()
    line = fastpeer("eval --table 2 --checkpoints best", finished).refused("peer.safetensors is missing")
    assert "--table 2 needs the peer" in line
    assert not (finished / "results.json").exists()
    config = finished / "config.toml"
    config.write_text(config.read_text("utf-8").replace('method = "peeraid"', 'method = "natural"'), "utf-8")
    # The loss is the method's own: that of another would be refused first.
    lines = config.read_text("utf-8").split("\n[loss]")
    kept = lines[0] + "\n[" + lines[1].partition("\n[")[2]
    config.write_text(kept, "utf-8")
    fastpeer("eval --table 2 --checkpoints last --force-settings", finished).refused(
        "the method natural has neither peer nor teacher"
    )


def test_a_teacher_that_changed_is_told(fastpeer, finished: Path, tmp_path: Path) -> None:
    out = tmp_path / "student"
    words = "--method rslad --model.student resnet8 --train.max-steps 1 --attack.steps 1 --quiet --log.to"
    fastpeer(f"train tiny.toml {words} --teacher", finished, "--out", out).succeeded()
    outcome = fastpeer("eval --table 2 --checkpoints last --examples 4", out).succeeded()
    assert "student last: teacher" in outcome.out
    facts = json.loads((out / "run.json").read_text("utf-8"))
    file = Path(facts["teachers"]["teacher"]["file"])
    shutil.copy(finished / "checkpoints" / "last" / "peer.safetensors", file.resolve())
    fastpeer("eval --table 2 --checkpoints last", out).refused(
        "is not the teacher that student last learnt from"
    )
    file.resolve().unlink()
    fastpeer("eval --table 2 --checkpoints last", out).refused("is missing", "--teacher")


@pytest.mark.parametrize("number", [6, pytest.param(7, marks=pytest.mark.soak)])
def test_a_table_with_all_its_parts(
    fastpeer, finished: Path, number: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    from fastpeer.evaluation.autoattack_parts import standard

    monkeypatch.setattr(standard, "SQUARE_QUERIES", 20)
    more = ["--surrogates", finished] if number == 6 else []
    line = f"eval --table {number} --checkpoints best --examples 2 --epsilon 0.3 --step-size 0.1"
    outcome = fastpeer(line, finished, *more).succeeded()
    assert "L-infinity epsilon 0.3, fp32, steps of 0.1" in outcome.out
    if number == 7:
        assert "of 4 checks" in outcome.out
        assert outcome.out.count("?") == 4


def test_images_of_another_size_must_be_asked_for(fastpeer, finished: Path, tmp_path: Path) -> None:
    from cli_files import make_images

    source = make_images(tmp_path / "source", ["ant", "bee", "cat", "dog"], 1, 1, 12)
    fastpeer(
        "prep --dataset folder --workers 1 --quiet --source", source, "--out", tmp_path / "data"
    ).succeeded()
    words = ["--data", tmp_path / "data"]
    fastpeer("eval --checkpoints best --attacks clean", finished, *words).refused(
        "trained on images of 8x8 pixels, got 12x12", "--size 12"
    )
    assert not (finished / "results.json").exists()
    fastpeer("eval --checkpoints best --attacks clean --size 12", finished, *words).succeeded()


def test_runs_shows_what_stands_beside_other_runs_alone(fastpeer, finished: Path) -> None:
    fastpeer("eval --checkpoints best --attacks pgd20,fgsm", finished).succeeded()
    file = finished / "results.json"
    stored = json.loads(file.read_text("utf-8"))
    own, single = stored["results"]
    others = [
        {"step_size": 1 / 255}, {"epsilon": 4 / 255}, {"role": "peer"},
        {"source": "other", "source_sha256": "0"},
    ]  # fmt: skip
    stored["results"] = [single, *(own | other for other in others)]
    file.write_text(json.dumps(stored), "utf-8")
    shown = fastpeer("runs", finished).succeeded().out
    assert "FGSM" in shown
    assert "PGD-20" not in shown
