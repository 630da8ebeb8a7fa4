"""`fastpeer eval`: what it finds, prints and stores, and what it refuses."""

from __future__ import annotations

import errno
import json
import re
import shutil
from collections.abc import Callable
from itertools import count
from pathlib import Path

import numpy as np
import pytest
import torch
from cli_files import results, snapshot, weights
from safetensors.torch import load_file, save_file
from scipy.stats import binomtest

from fastpeer.api import load
from fastpeer.errors import UserError
from fastpeer.evaluation import accuracy, certificates
from fastpeer.evaluation import results as evaluation_results
from fastpeer.evaluation.smoothing import certify

KINDS = ["last", "swa", "best", "best-swa"]


@pytest.fixture(autouse=True)
def wide(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "250")


def rows(shown: str) -> dict[str, list[str]]:
    """The table's rows by the last part of their first cell, such as `run best`."""
    cells = [[cell.strip() for cell in line.strip("│┃ ").split("│")] for line in shown.splitlines()]
    return {row[0].split("/")[-1]: row[1:] for row in cells if len(row) > 1}


def test_a_run(fastpeer, finished: Path, workshop: Path) -> None:
    outcome = fastpeer("eval --attacks clean,fgsm,pgd2", finished).succeeded()
    table = rows(outcome.out)
    assert list(table) == [f"finished {kind}" for kind in KINDS]
    assert all(len(row) == 3 for row in table.values())
    assert all(word in outcome.out for word in ("clean", "FGSM", "PGD-2", "12", "8/255", "val"))
    stored = results(finished / "results.json")
    assert [(entry["target"].split("/")[-1], entry["attack"]) for entry in stored] == [
        (f"finished {kind}", attack) for kind in KINDS for attack in ("clean", "fgsm", "pgd2")
    ]
    prepared = json.loads((workshop / "data" / "photos" / "dataset.json").read_text("utf-8"))
    for entry in stored:
        assert entry["images"] == entry["total"] == 12
        assert entry["accuracy"] == pytest.approx(100 * entry["correct"] / 12)
        assert entry["interval95"] is None
        assert entry["epsilon"] == 8 / 255
        assert entry["data_sha256"] == prepared["splits"]["test"]["sha256"]
        assert f"{entry['accuracy']:.2f}" in table[entry["target"].split("/")[-1]]
    last = next(entry for entry in stored if entry["target"].endswith("last"))
    assert last["weights_sha256"] == weights(finished)["checkpoints/last/student.safetensors"]


def test_results_are_replaced_and_added_to(fastpeer, finished: Path) -> None:
    file = finished / "results.json"
    fastpeer("eval --checkpoints last --attacks clean,pgd1", finished).succeeded()
    first = results(file)
    fastpeer("eval --checkpoints last --attacks pgd1", finished).succeeded()
    assert [(entry["attack"], entry["correct"]) for entry in results(file)] == [
        (entry["attack"], entry["correct"]) for entry in first
    ]
    for more in ("--step-size 1/255", "--norm l2", "--epsilon 4/255", "--examples 5", "--seed 1"):
        before = results(file)
        fastpeer(f"eval --checkpoints last --attacks pgd1 {more}", finished).succeeded()
        assert results(file)[: len(before)] == before
        assert len(results(file)) == len(before) + 1, more


def test_l2_is_named_and_a_radius_that_is_none_of_its_own_is_doubted(fastpeer, finished: Path) -> None:
    words = "eval --checkpoints last --attacks fgsm,pgd2 --norm l2"
    outcome = fastpeer(f"{words} --epsilon 0.5 --step-size 0.3", finished).succeeded()
    assert "L2 epsilon 0.5" in outcome.out
    assert "FGM" in outcome.out
    assert "norm l2 with" not in outcome.out
    for entry in results(finished / "results.json"):
        assert (entry["norm"], entry["epsilon"], entry["step_size"]) == ("l2", 0.5, 0.3)
    outcome = fastpeer(words, finished).succeeded()
    assert "norm l2 with epsilon 8/255 is nearly no attack" in outcome.out
    assert "step size 2/255: 2 steps" in fastpeer(f"{words} --epsilon 0.5", finished).succeeded().out


def test_examples_come_with_an_interval(fastpeer, finished: Path) -> None:
    outcome = fastpeer("eval --examples 5 --checkpoints best --attacks clean", finished).succeeded()
    assert re.search(r"\d+\.\d\d \[\d+\.\d, \d+\.\d\]", outcome.out)
    assert "95 %" in outcome.out
    assert "5 of 12" in outcome.out
    (entry,) = results(finished / "results.json")
    assert entry["images"] == 5
    low, high = entry["interval95"]
    assert 0 <= low <= entry["accuracy"] <= high <= 100


def test_more_examples_than_there_are(fastpeer, finished: Path) -> None:
    outcome = fastpeer("eval --examples 100 --checkpoints best --attacks clean", finished).succeeded()
    assert "95 %" not in outcome.out


@pytest.mark.parametrize("path", ["checkpoints/best", "checkpoints/best/student.safetensors"])
def test_a_checkpoint(fastpeer, finished: Path, path: str) -> None:
    fastpeer("eval --attacks clean", finished / path).succeeded()
    (entry,) = results(finished / "results.json")
    assert entry["weights_sha256"] == weights(finished)["checkpoints/best/student.safetensors"]
    fastpeer("eval --attacks clean --checkpoints best", finished).succeeded()
    assert len({entry["correct"] for entry in results(finished / "results.json")}) == 1


def test_weights_outside_a_run(fastpeer, finished: Path, tmp_path: Path) -> None:
    file = tmp_path / "net.safetensors"
    # Without metadata, as of older versions.
    save_file(load_file(finished / "checkpoints" / "best" / "student.safetensors"), file)
    fastpeer("eval", file).refused("--data", "--model")
    fastpeer("eval --data data/photos", file).refused("--model")
    fastpeer("eval --model resnet8", file).refused("--data")
    fastpeer("eval --data data/photos --model resnet9", file).refused("resnet9", "resnet8")
    fastpeer("eval --data data/photos --model mobilenetv2", file).refused("do not fit")
    fastpeer("eval --data data/cifar10 --model resnet8", file).refused("4 classes", "10")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["finished", "net.safetensors"]
    fastpeer("eval --data data/photos --model resnet8 --attacks clean", file).succeeded()
    assert results(tmp_path / "net.safetensors.results.json")[0]["total"] == 12


def test_weights_of_someone_else_s(fastpeer, finished: Path, tmp_path: Path) -> None:
    own = load_file(finished / "checkpoints" / "best" / "student.safetensors")
    broken = own | {"linear.bias": own["linear.bias"] / 0}
    file = tmp_path / "net.ckpt"
    numbers = {"mean": torch.full((3,), 0.5), "std": torch.full((3,), 0.25)}
    torch.save({"state_dict": broken, "ema": own | numbers}, file)
    line = "eval --data data/photos --model resnet8 --attacks clean"
    fastpeer(line, file).refused("finite", "linear.bias")
    fastpeer(f"{line} --weights-key swa", file).refused("swa", "state_dict, ema", "--weights-key")
    shown = fastpeer(f"{line} --weights-key ema", file).succeeded().out
    assert "took the weights under ema; others: --weights-key state_dict" in shown
    assert "normalises images by mean 0.5 0.5 0.5 and std 0.25 0.25 0.25, as its file records" in shown


@pytest.mark.parametrize("flag", ["--mean 125.3 123 113.9 --std 63 62.1 66.7", "--mean 125.3 --std 0.25"])
def test_a_normalisation_for_pixels_to_255(fastpeer, finished: Path, flag: str) -> None:
    fastpeer("eval", finished, *flag.split()).refused("mean must be at most 1", "0.4914", "0.2")


def test_several_runs(fastpeer, finished: Path, original: Path, tmp_path: Path) -> None:
    other = Path(shutil.copytree(original, tmp_path / "other", symlinks=True))
    outcome = fastpeer("eval --attacks clean --checkpoints last,best", finished, other).succeeded()
    assert list(rows(outcome.out)) == ["finished last", "finished best", "other last", "other best"]
    assert results(finished / "results.json")[0]["correct"] == results(other / "results.json")[0]["correct"]


def test_quiet_prints_the_table_alone(fastpeer, finished: Path) -> None:
    shown = fastpeer("eval --quiet --attacks clean", finished).succeeded().out
    assert len(rows(shown)) == 4


def test_output_to_a_file_is_plain(fastpeer, finished: Path) -> None:
    shown = fastpeer("eval --attacks clean,pgd1", finished).succeeded().out
    assert "\x1b" not in shown
    assert "\r" not in shown
    assert "…" not in shown


def test_no_row_loses_its_name_on_a_narrow_terminal(
    fastpeer, finished: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # A terminal as far as rich can tell, without colours.
    for name, value in (("FORCE_COLOR", "1"), ("TERM", "dumb"), ("LINES", "24"), ("COLUMNS", "80")):
        monkeypatch.setenv(name, value)
    shown = fastpeer("eval --quiet --examples 5 --attacks clean,pgd1", finished).succeeded().out
    assert max(map(len, shown.splitlines())) <= 80
    firsts = "".join(line.strip("│ ").split("│")[0].strip() for line in shown.splitlines() if "│" in line)
    assert all(f"finished {kind}" in firsts for kind in KINDS), shown


@pytest.mark.parametrize("columns", ["40", "80"])
def test_four_attacks_on_a_narrow_terminal(
    fastpeer, finished: Path, monkeypatch: pytest.MonkeyPatch, columns: str
) -> None:
    for name, value in (("FORCE_COLOR", "1"), ("TERM", "dumb"), ("LINES", "24"), ("COLUMNS", columns)):
        monkeypatch.setenv(name, value)
    words = "--quiet --examples 5 --checkpoints last --attacks clean,fgsm,pgd1,pgd2"
    lines = fastpeer(f"eval {words}", finished).succeeded().out.splitlines()
    start = lines.index("finished last")
    assert [line.split()[0] for line in lines[start + 1 : start + 5]] == ["clean", "FGSM", "PGD-1", "PGD-2"]
    found = [f"{entry['accuracy']:.2f}" for entry in results(finished / "results.json")]
    assert [line.split()[1] for line in lines[start + 1 : start + 5]] == found


def test_a_pipe_gets_whole_lines(fastpeer, finished: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = fastpeer("eval --attacks clean,pgd1", finished).succeeded().out
    monkeypatch.setenv("COLUMNS", "40")
    assert fastpeer("eval --attacks clean,pgd1", finished).succeeded().out == whole


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        ("--attacks foo", ["foo", "clean", "pgd20"]),
        ("--attacks pgd0", ["pgd0", "pgd20"]),
        ("--attacks clean,pgd-20", ["pgd-20", "pgd20"]),
        ("--attacks ''", ["--attacks"]),
        ("--checkpoints foo", ["foo", "best-swa"]),
        ("--checkpoints best_swa", ["best_swa", "best-swa"]),
        ("--batch-size 0", ["batch", "0"]),
        ("--batch-size -3", ["batch", "-3"]),
        ("--examples -1", ["examples", "-1"]),
        ("--epsilon -1", ["epsilon"]),
        ("--epsilon 8", ["epsilon"]),
        ("--epsilon inf", ["epsilon"]),
        ("--norm l1", ["--norm", "linf, l2", "l1"]),
        ("--norm l2 --epsilon 1e4", ["--epsilon", "128/255"]),
        ("--norm l2 --epsilon 128", ["--epsilon", "at most", "pixels", "128/255"]),
        ("--step-size -2/255", ["step"]),
        ("--seed -1", ["seed", "-1"]),
        ("--device nosuch", ["--device", "nosuch", "cpu"]),
        ("--data nosuch", ["nosuch", "fastpeer prep"]),
        ("--data data/cifar10", ["4 classes", "10"]),
        ("--model mobilenetv2", ["do not fit"]),
        ("--model resnet9", ["resnet9", "resnet8"]),
    ],
)
def test_wrong_wishes_are_refused(fastpeer, finished: Path, flags: str, words: list[str]) -> None:
    fastpeer(f"eval {flags}", finished).refused(*words)
    assert not (finished / "results.json").exists()


def test_what_is_no_run(fastpeer, tmp_path: Path, workshop: Path) -> None:
    (tmp_path / "notes.txt").write_text("x", "utf-8")
    fastpeer("eval", tmp_path / "nosuch").refused("nosuch")
    fastpeer("eval", tmp_path).refused(str(tmp_path))
    fastpeer("eval", tmp_path / "notes.txt").refused("notes.txt")


def test_the_paper_is_named_where_the_data_are_the_paper_s(fastpeer, tmp_path: Path) -> None:
    words = "--model.student resnet8 --model.peer resnet8 --train.max-steps 1 --attack.steps 1"
    recipe = "cifar10-resnet18 --selection.steps 1 --log.to --quiet"
    fastpeer(f"train {recipe} {words} --out", tmp_path / "cifar10").succeeded()
    outcome = fastpeer("eval --attacks clean,pgd1,fgsm --checkpoints last", tmp_path / "cifar10").succeeded()
    table = rows(outcome.out)
    paper = next(name for name in table if "Table 1" in name)
    assert table[paper] == ["85.01", "", "61.28"]
    assert "test" in outcome.out.replace("\n", " ")

    fastpeer(f"train {recipe} {words} --data data/photos --out", tmp_path / "photos").succeeded()
    outcome = fastpeer("eval --attacks clean --checkpoints last", tmp_path / "photos").succeeded()
    assert "85.01" not in outcome.out


@pytest.fixture
def runs(original: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder runs/ with `old` and, newer, `new`."""
    import os

    folder = tmp_path / "runs"
    for number, name in enumerate(("old", "new")):
        shutil.copytree(original, folder / name, symlinks=True)
        for path in (folder / name).rglob("*"):
            os.utime(path, (1000 + number, 1000 + number), follow_symlinks=False)
    return folder


def test_the_newest_run_is_the_default(fastpeer, runs: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(runs.parent)
    assert list(rows(fastpeer("eval --attacks clean --checkpoints last").succeeded().out)) == ["new last"]


def test_no_run_at_all(fastpeer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    fastpeer("eval").refused("runs", "fastpeer train")
    (tmp_path / "runs").mkdir()
    fastpeer("eval").refused("runs", "fastpeer train")


def test_a_run_without_a_checkpoint(fastpeer, finished: Path) -> None:
    shutil.rmtree(finished / "checkpoints")
    (finished / "checkpoints").mkdir()
    fastpeer("eval --attacks clean", finished).refused(str(finished), "no checkpoint")
    fastpeer("eval --attacks clean --checkpoints last", finished).refused(str(finished), "no checkpoint")


def test_before_its_first_epoch_there_is_no_average(fastpeer, tmp_path: Path) -> None:
    fastpeer("train tiny.toml --train.max-steps 2 --quiet --out", tmp_path / "run").succeeded()
    outcome = fastpeer("eval --attacks clean", tmp_path / "run").succeeded()
    assert list(rows(outcome.out)) == ["run last"]


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

    monkeypatch.setattr(evaluation_results, "TemporaryFile", refused)
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


def test_a_folder_of_runs_stands_for_those_in_it(fastpeer, runs: Path) -> None:
    shutil.copytree(runs / "new", runs / "started", symlinks=True)
    shutil.rmtree(runs / "started" / "checkpoints")
    for name in ("factless", "damaged"):
        shutil.copytree(runs / "new", runs / name, symlinks=True)
    (runs / "factless" / "run.json").write_text("{")
    (runs / "damaged" / "checkpoints" / "last" / "student.safetensors").write_bytes(b"garbage")
    outcome = fastpeer("eval --attacks clean --checkpoints last", runs, runs / "old").succeeded()
    assert list(rows(outcome.out)) == ["new last", "old last"]
    assert f"left out: {runs / 'started'} holds no checkpoint" in outcome.out
    for name in ("factless/run.json", "damaged/checkpoints/last/student.safetensors"):
        assert f"left out: {runs / name}: damaged" in outcome.out
    fastpeer("eval --checkpoints lost", runs).refused("lost", "last")


@pytest.mark.parametrize("content", ["garbage", "{}", "[]"])
def test_a_damaged_run_json(fastpeer, finished: Path, content: str) -> None:
    (finished / "run.json").write_text(content, "utf-8")
    fastpeer("eval --attacks clean", finished).refused("run.json")


def test_damaged_weights(fastpeer, finished: Path) -> None:
    (finished / "checkpoints" / "best" / "student.safetensors").write_bytes(b"garbage")
    fastpeer("eval --attacks clean --checkpoints best", finished).refused("student.safetensors", "damaged")


def test_from_another_folder(fastpeer, finished: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(finished)
    fastpeer("eval . --attacks clean --checkpoints last").succeeded()


def test_data_that_moved(fastpeer, finished: Path, tmp_path: Path) -> None:
    facts = json.loads((finished / "run.json").read_text("utf-8"))
    facts["data"]["folder"] = str(tmp_path / "gone")
    (finished / "run.json").write_text(json.dumps(facts), "utf-8")
    fastpeer("eval --attacks clean", finished).refused("gone")
    fastpeer("eval --attacks clean --data data/photos", finished).succeeded()


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
