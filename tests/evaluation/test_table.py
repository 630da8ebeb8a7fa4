"""The printed table: each run's rows, and the paper's figures below them."""

from dataclasses import replace
from io import StringIO
from pathlib import Path

import pytest
from rich.console import Console

from fastpeer.config import Config, OptimConfig
from fastpeer.config.recipes import load_recipe
from fastpeer.evaluation.results import Result
from fastpeer.evaluation.table import print_results
from fastpeer.evaluation.targets import Target
from fastpeer.run_folder import RunFolder

ATTACKS = ("clean", "fgsm", "pgd20", "pgd10", "aa")


def target(run: str, kind: str, config: Config | None) -> Target:
    path = Path("runs") / run
    return Target(f"{run} {kind}", path / kind, RunFolder(path) if config else None, config)


def result(
    attack: str, dataset: str = "cifar10", epsilon: float = 8 / 255, pixels: str = "official pixels"
) -> Result:
    return Result(
        target="", weights_sha256="", attack=attack, correct=1, images=8, total=8, epsilon=epsilon,
        step_size=2 / 255, seed=0, batch_size=8, targets=9 if attack == "aa" else None, dataset=dataset,
        data_sha256="", seconds=1.0, torch="", pixels=pixels,
    )  # fmt: skip


def shown(*targets: Target, width: int = 200, **facts) -> str:
    file = StringIO()
    rows = {student: [result(attack, **facts) for attack in ATTACKS] for student in targets}
    print_results(rows, Console(file=file, width=width))
    return file.getvalue()


def sections(text: str) -> list[list[list[str]]]:
    """The table's cells, by its sections."""
    found: list[list[list[str]]] = []
    for line in text.splitlines():
        if line.startswith(("┡", "├")):
            found.append([])
        elif line.startswith("│"):
            found[-1].append([cell.strip() for cell in line.strip("│").split("│")])
    return found


def test_the_paper_s_row_stands_below_the_run_s_in_the_same_columns():
    config = load_recipe("cifar10-resnet18-trades")
    (rows,) = sections(shown(target("mine", "last", config), target("mine", "best", config)))
    own = ["12.50"] * 5
    assert rows == [
        ["mine last", *own],
        ["mine best", *own],
        ["paper, Table 1, CIFAR-10, ResNet-18, TRADES", "81.47", "57.75", "52.92", "", "49.35"],
    ]


def test_runs_of_several_methods_have_a_section_and_figures_each():
    methods = {"TRADES": "cifar10-resnet18-trades", "RSLAD": "cifar10-resnet18-rslad"}
    runs = [target(name, "best", load_recipe(name)) for name in (*methods.values(), "cifar10-resnet18")]
    found = sections(shown(*runs))
    assert [[row[0] for row in rows] for rows in found] == [
        ["cifar10-resnet18-trades best", "paper, Table 1, CIFAR-10, ResNet-18, TRADES"],
        ["cifar10-resnet18-rslad best", "paper, Table 1, CIFAR-10, ResNet-18, RSLAD"],
        ["cifar10-resnet18 best", "paper, Table 1, CIFAR-10, ResNet-18, PeerAiD"],
    ]
    assert [rows[1][1] for rows in found] == ["81.47", "81.00", "85.01"]


def test_students_of_a_run_stand_together_whatever_the_order():
    config = load_recipe("cifar10-resnet18")
    other = target("other", "best", replace(config, paper=None))
    found = sections(shown(target("mine", "last", config), other, target("mine", "best", config)))
    assert [[row[0].split(",")[0] for row in rows] for rows in found] == [
        ["mine last", "mine best", "paper"],
        ["other best"],
    ]


def test_weights_of_no_run_stand_alone():
    found = sections(shown(target("one", "last", None), target("two", "last", None)))
    assert [[row[0] for row in rows] for rows in found] == [["one last"], ["two last"]]


@pytest.mark.parametrize("facts", [{"dataset": "photos"}, {"epsilon": 4 / 255}])
def test_what_the_paper_did_not_measure_is_not_compared(facts):
    text = shown(target("mine", "best", load_recipe("cifar10-resnet18")), **facts)
    assert "Table 1" not in text
    assert "85.01" not in text


def test_other_settings_are_noted_for_the_run_that_has_them():
    config = load_recipe("cifar10-resnet18-trades")
    other = replace(config, optim=OptimConfig(lr=0.2, milestones=config.optim.milestones))
    text = shown(target("same", "best", config), target("other", "best", other))
    notes = [line for line in text.splitlines() if "not the paper's settings" in line]
    assert notes == [
        "runs/other: not the paper's settings (Table 1, CIFAR-10, ResNet-18, TRADES): other optim.lr"
    ]


@pytest.mark.parametrize(
    ("facts", "named"),
    [
        ({"pixels": ""}, "data (not known to be the official pixels)"),
        ({"pixels": "not the official pixels: JPEG files"}, "data (not the official pixels: JPEG files)"),
        ({"dataset": "photos"}, "data (photos for cifar10)"),
    ],
)
def test_other_data_are_named_before_other_settings(facts, named):
    config = load_recipe("cifar10-resnet18-trades")
    other = replace(config, optim=OptimConfig(lr=0.2, milestones=config.optim.milestones))
    assert f"): other {named}, optim.lr" in shown(target("other", "best", other), **facts)


def test_other_data_alone_are_named():
    text = shown(target("same", "best", load_recipe("cifar10-resnet18-trades")), pixels="")
    assert "other data (not known to be the official pixels)" in text


def test_nothing_is_cut_on_a_narrow_terminal():
    text = shown(target("mine", "best", load_recipe("cifar10-resnet18-trades")), width=80)
    assert max(map(len, text.splitlines())) <= 80
    assert "…" not in text
    firsts = "".join(row[0] for row in sections(text)[0]).replace(" ", "")
    assert "paper,Table1,CIFAR-10,ResNet-18,TRADES" in firsts
