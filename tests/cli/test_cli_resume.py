"""`fastpeer train --resume`: with a recipe or without, with other settings, and where there is no run."""

from __future__ import annotations

import errno
import fcntl
import hashlib
import json
import os
import shutil
from pathlib import Path

import pytest
import torch
from cli_files import metrics, snapshot, weights

from fastpeer.cli.arguments import TrainArguments
from fastpeer.cli.resuming import resumed_base
from fastpeer.config.recipes import load_recipe
from fastpeer.run_folder import RunFolder


@pytest.fixture
def half(stopped: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(stopped, tmp_path / "half", symlinks=True))


def same_as_uninterrupted(run: Path, original: Path) -> None:
    assert weights(run) == weights(original)
    # A stop at max_steps writes a line of its own; all the others are alike.
    assert [record for record in metrics(run) if record in metrics(original)] == [
        record for record in metrics(original) if record["step"] != 8 or "selection" in record
    ]


def test_without_a_recipe(fastpeer, half: Path, original: Path) -> None:
    fastpeer("train --resume --train.max-steps 0 --quiet --out", half).succeeded()
    same_as_uninterrupted(half, original)
    assert (half / "config.toml").read_bytes() == (original / "config.toml").read_bytes()


def test_with_images_that_are_kept_on_the_device_from_then_on(fastpeer, half: Path, original: Path) -> None:
    fastpeer("train --resume --train.max-steps 0 --data.residency device --quiet --out", half).succeeded()
    same_as_uninterrupted(half, original)


def test_with_its_recipe(fastpeer, half: Path, original: Path) -> None:
    fastpeer("train tiny.toml --resume --train.max-steps 0 --quiet --out", half).succeeded()
    same_as_uninterrupted(half, original)


def test_from_another_folder(fastpeer, half: Path, original: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(half.parent)
    fastpeer("train --resume --train.max-steps 0 --quiet --out half").succeeded()
    same_as_uninterrupted(half, original)


def test_a_recipe_with_a_method_is_that_of_the_method(half: Path, logged: list[str]) -> None:
    run, given = RunFolder(half), TrainArguments(recipe="cifar10-resnet18", resume=True)
    run.write_config(load_recipe("cifar10-resnet18-trades"))
    assert resumed_base(run, given, "trades").method == "trades"
    assert logged == []
    resumed_base(run, given)
    assert logged[0].startswith("note: the run keeps its own ")


def test_another_recipe_changes_nothing(fastpeer, half: Path, original: Path) -> None:
    outcome = fastpeer("train cifar10-resnet18 --resume --train.max-steps 0 --out", half).succeeded()
    (note,) = [line for line in outcome.out.splitlines() if line.startswith("note: the run keeps its own")]
    assert all(name in note for name in ("model.student", "train.epochs", "optim.milestones"))
    assert weights(half) == weights(original)


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        ("--attack.steps 4", ["attack.steps", "1", "4"]),
        ("--train.batch-size 4", ["train.batch_size", "8", "4"]),
        ("--seed 3", ["seed", "0", "3"]),
        ("--amp", ["precision", "fp32", "bf16"]),
        ("--model.student resnet18", ["model.student", "resnet8", "resnet18"]),
        ("--swa.enabled false", ["swa.enabled"]),
        ("--force", ["--resume", "--force"]),
        ("--init-student x.pt", ["--init-student"]),
        ("--data nosuch", ["nosuch"]),
        ("--data data/cifar10", ["data/cifar10", "trained on"]),
        ("nosuch", ["nosuch"]),
    ],
)
def test_what_a_resumed_run_refuses(fastpeer, half: Path, flags: str, words: list[str]) -> None:
    before = snapshot(half)
    fastpeer(f"train --resume {flags} --out", half).refused(*words)
    assert snapshot(half) == before


def test_a_finished_run_stays_as_it_is(fastpeer, finished: Path, original: Path) -> None:
    outcome = fastpeer("train --resume --out", finished).succeeded()
    assert "finished" in outcome.out
    assert "best" in outcome.out
    assert weights(finished) == weights(original)
    assert metrics(finished) == metrics(original)


def test_a_finished_run_can_be_made_longer(fastpeer, finished: Path) -> None:
    before = metrics(finished)
    fastpeer("train --resume --train.epochs 4 --quiet --out", finished).succeeded()
    assert metrics(finished)[: len(before)] == before
    assert metrics(finished)[-1]["epoch"] == 3


@pytest.mark.parametrize("links", [True, False])
def test_a_copy_with_links_resolved(
    fastpeer, stopped: Path, original: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, links: bool
) -> None:
    run = Path(shutil.copytree(stopped, tmp_path / "moved"))
    if not links:
        monkeypatch.setattr(os, "symlink", no_links)
    fastpeer("train --resume --train.max-steps 0 --quiet --out", run).succeeded()
    monkeypatch.undo()
    monkeypatch.chdir(original.parent)
    assert sorted(file_sums(run)) == sorted(file_sums(original))
    fastpeer("eval --attacks clean --checkpoints last", run).succeeded()
    fastpeer("eval --attacks clean", run / "checkpoints/last/student.safetensors").succeeded()


def test_a_drive_without_links(
    fastpeer, original: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "symlink", no_links)
    run = tmp_path / "run"
    fastpeer("train tiny.toml --train.max-steps 7 --quiet --out", run).succeeded()
    fastpeer("train --resume --train.max-steps 0 --quiet --out", run).succeeded()
    assert (run / "checkpoints" / "last").is_file()
    assert sorted(file_sums(run)) == sorted(file_sums(original))
    fastpeer("eval --attacks clean", run, run / "checkpoints" / "best").succeeded()


def no_links(*_: object, **__: object) -> None:
    raise PermissionError(errno.EPERM, "Operation not permitted")


def file_sums(run: Path) -> list[str]:
    """Checksums of the networks in all checkpoints."""
    folders = [RunFolder(run).checkpoint(name) for name in ("last", "best", "best-swa")]
    files = [file for folder in folders for file in sorted(folder.glob("*.safetensors"))]
    assert len(files) >= 5
    return [hashlib.sha256(file.read_bytes()).hexdigest() for file in files]


def test_without_out_the_newest_run_of_the_recipe(
    fastpeer, stopped: Path, workshop: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for number, name in enumerate(("tiny", "newer", "other")):
        run = Path(shutil.copytree(stopped, tmp_path / "runs" / name, symlinks=True))
        os.utime(run / "metrics.jsonl", (1000 + number, 1000 + number))
    facts = json.loads((run / "run.json").read_text("utf-8"))
    assert facts["recipe"] == "tiny"
    (run / "run.json").write_text(json.dumps({**facts, "recipe": "tiny-resnet18"}), "utf-8")
    # As an older version wrote it: the folder's name is the recipe's.
    del facts["recipe"]
    (tmp_path / "runs/tiny/run.json").write_text(json.dumps(facts), "utf-8")
    monkeypatch.chdir(tmp_path)
    (tmp_path / "tiny.toml").write_bytes((workshop / "tiny.toml").read_bytes())
    shown = fastpeer("train tiny.toml --resume --train.max-steps 8").succeeded().out
    assert "resuming runs/newer, the newest run of tiny" in shown
    shown = fastpeer("train --resume --train.max-steps 8").succeeded().out
    assert "resuming runs/other, the newest run of tiny-resnet18" in shown
    fastpeer("train demo --resume").refused(
        "no run of demo in runs/: name the run by --out, such as --out runs/"
    )


def test_no_run_there(fastpeer, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "file").write_text("keep", "utf-8")
    for name in ("nosuch", "empty", "file"):
        fastpeer("train --resume --out", tmp_path / name).refused(name)
    assert not (tmp_path / "nosuch").exists()
    assert list((tmp_path / "empty").iterdir()) == []


def test_a_run_killed_before_its_first_checkpoint(fastpeer, half: Path, original: Path) -> None:
    shutil.rmtree(half / "checkpoints")
    (half / "checkpoints").mkdir()
    outcome = fastpeer("train --resume --train.max-steps 0 --out", half)
    if outcome.code:
        outcome.refused("--force")
    else:
        same_as_uninterrupted(half, original)


def test_a_lost_log_does_not_lose_the_run(fastpeer, half: Path, original: Path) -> None:
    (half / "metrics.jsonl").unlink()
    fastpeer("train --resume --train.max-steps 0 --quiet --out", half).warned(
        "lines of former epochs are missing"
    )
    assert weights(half) == weights(original)
    assert metrics(half)[-1] == metrics(original)[-1]


def test_lines_written_after_the_checkpoint_are_written_anew(fastpeer, half: Path, original: Path) -> None:
    with (half / "metrics.jsonl").open("a") as file:
        file.write('{"epoch": 1, "step": 8, "half a li')
    fastpeer("train --resume --train.max-steps 0 --quiet --out", half).succeeded()
    same_as_uninterrupted(half, original)


@pytest.mark.parametrize("damage", ["garbage", "empty", "other", "gone"])
@pytest.mark.parametrize("name", ["state.pt", "peer.safetensors", "student.safetensors"])
def test_a_damaged_checkpoint(fastpeer, half: Path, name: str, damage: str) -> None:
    """Where it is the only one; tests/cli/test_cli_damage.py has those with another to go on from."""
    for spare in (half / "checkpoints" / ".store").glob("last-*"):
        if spare != (half / "checkpoints" / "last").resolve():
            shutil.rmtree(spare)
    file = half / "checkpoints" / "last" / name
    if damage == "other" and name == "state.pt":
        torch.save({"x": 1}, file)
    else:
        file.unlink()
    if damage in ("garbage", "empty"):
        file.write_bytes(b"garbage" if damage == "garbage" else b"")
    before = snapshot(half)
    fastpeer("train --resume --out", half).refused(name)
    assert snapshot(half) == before


@pytest.mark.parametrize("content", ["garbage", "{}", "[]", '{"data": {}}'])
def test_a_damaged_run_json(fastpeer, half: Path, content: str) -> None:
    (half / "run.json").write_text(content, "utf-8")
    fastpeer("train --resume --out", half).refused("run.json")


def test_a_damaged_config(fastpeer, half: Path) -> None:
    (half / "config.toml").write_text("garbage", "utf-8")
    fastpeer("train --resume --out", half).refused("config.toml")


def test_a_drive_without_locks(fastpeer, half: Path, original: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def no_locks(*_: object) -> None:
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(fcntl, "flock", no_locks)
    shown = fastpeer("train --resume --train.max-steps 0 --out", half).succeeded().out
    assert "cannot be locked (No locks available)" in shown
    same_as_uninterrupted(half, original)
