"""`fastpeer eval`: what it finds, prints and stores, and what it refuses."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path

import pytest
import torch
from cli_files import results, rows, weights
from safetensors.torch import load_file, save_file

pytestmark = pytest.mark.usefixtures("wide")
KINDS = ["last", "swa", "best", "best-swa"]


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
        ("--attacks foo", ["foo", "clean", "pgdN takes N steps"]),
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


def test_a_folder_of_runs_stands_for_those_in_it(fastpeer, runs: Path) -> None:
    shutil.copytree(runs / "new", runs / "started", symlinks=True)
    shutil.rmtree(runs / "started" / "checkpoints")
    for name in ("factless", "damaged"):
        shutil.copytree(runs / "new", runs / name, symlinks=True)
    (runs / "factless" / "run.json").write_text("{")
    (runs / "damaged" / "checkpoints" / "last" / "student.safetensors").write_bytes(b"garbage")
    shutil.copytree(runs / "new", runs / "foreign", symlinks=True)
    settings = (runs / "foreign" / "config.toml").read_text("utf-8")
    (runs / "foreign" / "config.toml").write_text(
        settings.replace('"resnet8"', '"strange_nets:Net"', 1), "utf-8"
    )
    outcome = fastpeer("eval --attacks clean --checkpoints last", runs, runs / "old").succeeded()
    assert list(rows(outcome.out)) == ["new last", "old last"]
    assert f"left out: {runs / 'foreign'}: network strange_nets:Net: a file names it" in outcome.out
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
