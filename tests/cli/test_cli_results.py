"""`fastpeer eval`: what it keeps of what it found, and compares over runs."""

from __future__ import annotations

import errno
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from cli_files import results, rows, snapshot
from safetensors.torch import load_file, save_file
from scipy.stats import binomtest

from fastpeer.errors import UserError
from fastpeer.evaluation import accuracy
from fastpeer.evaluation import results as evaluation_results

pytestmark = pytest.mark.usefixtures("wide")


@pytest.mark.parametrize("content", ["{", "[]", "{}", '{"results": [{"a": 1}]}', '{"results": 3}', "\x00"])
def test_damaged_results_are_found_before_the_attacks(
    fastpeer, finished: Path, content: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def attack(*_: object, **__: object) -> None:
        pytest.fail("the attacks were run, and their results will be lost")

    monkeypatch.setattr(accuracy, "Evaluator", attack)
    (finished / "results.json").write_text(content, "utf-8")
    fastpeer("eval --attacks clean", finished).refused("results.json")
    assert (finished / "results.json").read_text("utf-8") == content


def test_what_was_found_before_an_interrupt_is_kept(
    fastpeer, finished: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = accuracy.Evaluator
    calls = 0

    def interrupted(*arguments, **named):
        nonlocal calls
        calls += 1
        if calls == 2:
            raise KeyboardInterrupt
        return whole(*arguments, **named)

    monkeypatch.setattr(accuracy, "Evaluator", interrupted)
    outcome = fastpeer("eval --checkpoints last --attacks clean,pgd1", finished)
    assert outcome.code == 130
    outcome.refused()
    assert [entry["attack"] for entry in results(finished / "results.json")] == ["clean"]


def test_where_results_cannot_be_stored_nothing_is_attacked(
    fastpeer, finished: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refused(**_: object) -> None:
        raise PermissionError(errno.EACCES, "Permission denied")

    monkeypatch.setattr("fastpeer.files.TemporaryFile", refused)
    monkeypatch.setattr(accuracy, "Evaluator", lambda *_, **__: pytest.fail("the attacks were run"))
    fastpeer("eval --attacks clean", finished).refused("results.json", "Permission denied")


def test_the_check_leaves_no_trace(finished: Path) -> None:
    before = snapshot(finished), finished.stat().st_mtime_ns
    evaluation_results.check_storable(finished / "results.json")
    assert (snapshot(finished), finished.stat().st_mtime_ns) == before


def test_results_that_cannot_be_stored_any_more_are_printed(
    fastpeer, finished: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(file: Path, _: Callable[[], str]) -> None:
        raise UserError(f"{file}: cannot be written (No space left on device)")

    monkeypatch.setattr(evaluation_results, "update_atomically", full)
    outcome = fastpeer("eval --attacks clean,pgd1 --checkpoints last", finished)
    outcome.refused("results.json", "No space left", "2 results", "table")
    assert outcome.code == 2
    assert len(rows(outcome.out)["finished last"]) == 2


def test_results_are_stored_as_soon_as_there_is_space_again(
    fastpeer, finished: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    storing, calls = evaluation_results.update_atomically, []

    def full_at_first(file: Path, text: Callable[[], str]) -> None:
        calls.append(file)
        if len(calls) == 1:
            raise UserError(f"{file}: cannot be written (No space left on device)")
        storing(file, text)

    monkeypatch.setattr(evaluation_results, "update_atomically", full_at_first)
    outcome = fastpeer("eval --attacks clean,pgd1 --checkpoints last", finished).succeeded()
    assert "No space left" in outcome.out
    assert [entry["attack"] for entry in results(finished / "results.json")] == ["clean", "pgd1"]


@pytest.fixture
def twins(original: Path, tmp_path: Path) -> tuple[Path, Path]:
    """Two runs that differ in their seed, and in their best student's last layer."""
    runs = tmp_path / "one", tmp_path / "two"
    for seed, run in enumerate(runs):
        shutil.copytree(original, run, symlinks=True)
        config = (run / "config.toml").read_text("utf-8")
        (run / "config.toml").write_text(config.replace("seed = 0", f"seed = {seed}"), "utf-8")
    file = runs[1] / "checkpoints" / "best" / "student.safetensors"
    tensors = load_file(file)
    tensors["linear.bias"] += torch.tensor([9.0, 0, 0, 0])
    save_file(tensors, file)
    (file.parent / "manifest.json").unlink(missing_ok=True)
    return runs


def test_runs_are_compared_image_by_image_and_over_seeds(fastpeer, twins: tuple[Path, Path]) -> None:
    words = "eval --checkpoints best --attacks clean,pgd1"
    shown = fastpeer(f"{words} --per-class", *twins).succeeded().out
    table = rows(shown)
    for number, attack in enumerate(("clean", "pgd1")):
        verdicts = []
        for run in twins:
            entry = next(entry for entry in results(run / "results.json") if entry["attack"] == attack)
            with np.load(run / "verdicts" / entry["by_image_file"]) as file:
                verdicts.append(file["correct"])
                labels, classes = file["label"], file["classes"].tolist()
            assert entry["correct"] == verdicts[-1].sum()
            worst = entry["worst_class"]
            assert worst["correct"] == min(verdicts[-1][labels == label].sum() for label in range(4))
            assert (worst["name"] in classes, worst["images"]) == (True, 3)
        only = [int((verdicts[i] & ~verdicts[1 - i]).sum()) for i in (0, 1)]
        p = binomtest(only[0], sum(only)).pvalue if sum(only) else 1
        chance = ", which may be chance" if p > 0.05 else ""
        images = "image" if only[0] == 1 else "images"
        told = (
            f"one best is right on {only[0]} {images} where two best is wrong, {only[1]} the other way, of 12"
        )
        assert f"  {['clean', 'PGD-1'][number]}: {told}: p = {p:.2g}{chance}\n" in shown
        figures = [100 * verdict.mean() for verdict in verdicts]
        assert (
            table["mean of 2 seeds, best"][number]
            == f"{np.mean(figures):.2f} ± {np.std(figures, ddof=1):.2f}"
        )
    assert f"{twins[0]}, {twins[1]}: differ in their seed alone" in shown
    assert shown.count("worst class") == 2
    stored = fastpeer(f"{words} --per-class --stored", *twins).succeeded().out
    assert stored == shown


def test_what_is_not_stored_is_not_shown(fastpeer, finished: Path) -> None:
    fastpeer("eval --stored --checkpoints best", finished).refused("no result", "--stored")
    assert not (finished / "results.json").exists()
    fastpeer("eval --checkpoints best --attacks clean,pgd1", finished).succeeded()
    for words in ("--attacks pgd2", "--attacks pgd1 --epsilon 4/255", "--attacks clean --seed 1"):
        fastpeer(f"eval --stored --checkpoints best {words}", finished).refused("no result", "finished best")
    (entry, _) = results(finished / "results.json")
    (finished / "verdicts" / entry["by_image_file"]).write_bytes(b"")
    fastpeer("eval --stored --checkpoints best --attacks clean", finished).succeeded()
    fastpeer("eval --stored --per-class --checkpoints best --attacks clean", finished).refused("damaged")
