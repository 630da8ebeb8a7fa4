"""Which checkpoints a run keeps, when it saves, and how it goes back to one when a loss is not finite."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from cli_files import metrics, results, weights

from fastpeer.training import checkpoints


@contextmanager
def files_for_all(mask: int) -> Iterator[None]:
    former = os.umask(mask)
    try:
        yield
    finally:
        os.umask(former)


def test_epochs_are_kept_and_can_be_evaluated(fastpeer, tmp_path: Path) -> None:
    run = tmp_path / "run"
    with files_for_all(0o022):
        words = "--checkpoint.keep-every 1 --train.epochs 2 --train.batch-size 18"
        # As people name it.
        fastpeer(f"train tiny.toml --quiet {words} --out", os.path.relpath(run)).succeeded()
    assert {path.name for path in (run / "checkpoints").glob("epoch-*")} == {"epoch-0", "epoch-1"}
    # They are not copies.
    assert (run / "checkpoints" / "epoch-1").resolve() == (run / "checkpoints" / "last").resolve()
    fastpeer("eval --attacks clean", run / "checkpoints" / "epoch-0").succeeded()
    assert len(results(run / "results.json")) == 1
    files = [path for path in run.rglob("*") if path.is_file()]
    assert {oct(path.stat().st_mode & 0o777) for path in files} == {"0o644"}


@pytest.mark.soak
def test_saving_within_an_epoch_changes_nothing_but_what_a_kill_loses(
    fastpeer, tmp_path: Path, original: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    save, numbers = checkpoints.save_checkpoint, []

    def counted(folder: Path, name: str, number: int, *rest: object) -> None:
        if name == "last":
            numbers.append(number)
        save(folder, name, number, *rest)

    monkeypatch.setattr(checkpoints, "save_checkpoint", counted)
    # The date of the system is of no importance.
    monkeypatch.setattr(time, "time", lambda: -1e9)
    monkeypatch.setenv("TMPDIR", "/dev/shm")
    fastpeer("train tiny.toml --checkpoint.every-minutes 1e-9 --quiet --out", tmp_path / "run").succeeded()
    assert sorted(set(numbers)) == list(range(16))
    assert weights(tmp_path / "run") == weights(original)
    assert metrics(tmp_path / "run") == metrics(original)


DIVERGES = "train tiny.toml --optim.lr 1e30 --log.every 1 --train.epochs 1 --train.on-nonfinite rollback"


def test_a_loss_that_is_not_finite_sends_the_run_back(fastpeer, tmp_path: Path) -> None:
    run = tmp_path / "run"
    shown = fastpeer(f"{DIVERGES} --train.rollback-rate 1e-31 --out", run).succeeded().out
    assert "is not finite at step 2; nan, of the peer, learning rate 1e+30" in shown
    assert "going back to it, with 1e-31 times the learning rate (1 of 3 times)" in shown
    assert [record["lr"] for record in metrics(run) if "lr" in record] == pytest.approx([0.1] * 5)
    # The lower rate is the run's, also after a stop.
    fastpeer("train --resume --train.epochs 2 --quiet --out", run).succeeded()
    assert metrics(run)[-2]["lr"] == pytest.approx(0.01)


@pytest.mark.soak
def test_a_run_goes_back_only_so_often(fastpeer, tmp_path: Path) -> None:
    outcome = fastpeer(f"{DIVERGES} --train.rollbacks 2 --train.rollback-rate 0.9 --out", tmp_path / "run")
    outcome.refused("is not finite at step 2", "learning rate 8.1e+29", "lets a run go back 2 times")
