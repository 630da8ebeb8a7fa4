"""Tables over the radius, and rows over seeds."""

import json
from dataclasses import replace
from io import StringIO
from pathlib import Path
from statistics import mean, stdev

import pytest
from rich.console import Console

from fastpeer.config import Config, LogConfig, OptimConfig
from fastpeer.evaluation.details import rising, show_curves
from fastpeer.evaluation.seeds import seed_groups, spreads
from fastpeer.evaluation.targets import Target
from fastpeer.run_folder import RunFolder
from fastpeer.table_formats import report_in
from tests.evaluation.test_results import RESULT


def point(attack: str, epsilon: float, correct: int):
    return replace(RESULT, attack=attack, epsilon=epsilon / 255, correct=correct)


CLEAN = point("clean", 8, 9)


@pytest.mark.parametrize(
    ("row", "told"),
    [
        ([CLEAN, point("pgd20", 4, 6), point("pgd20", 8, 3), point("pgd20", 16, 3)], []),
        ([CLEAN, point("pgd20", 4, 6), point("pgd20", 8, 7)], ["at epsilon 8/255 is at most 60.00 %"]),
        ([CLEAN, point("fgsm", 8, 7), point("fgsm", 4, 6)], ["at epsilon 8/255 is at most 60.00 %"]),
        ([CLEAN, point("pgd20", 4, 10)], ["at epsilon 4/255 is at most 90.00 %"]),
        (
            [point("pgd20", 4, 5), point("fgsm", 4, 5), point("fgsm", 8, 6)],
            ["FGSM is weaker at epsilon 8/255"],
        ),
    ],
)
def test_an_attack_that_weakens_as_the_ball_grows_is_named(row, told):
    lines = list(rising(row))
    assert len(lines) == len(told)
    assert all(words in line for words, line in zip(told, lines, strict=True))


def test_a_curve_that_was_stopped_shows_what_it_found():
    file = StringIO()
    first, second = (Target(name, Path(name), None, None) for name in ("one", "two"))
    row = [CLEAN, *(point("pgd20", epsilon, 10 - epsilon) for epsilon in (2, 4, 8))]
    show_curves({first: row, second: row[:2]}, report_in("text", Console(file=file, width=200)))
    cells = [[cell.strip() for cell in line.strip("│").split("│")] for line in file.getvalue().splitlines()]
    assert ["one", "90.00", "80.00", "60.00", "20.00"] in cells
    assert ["two", "90.00", "80.00", "", ""] in cells


def test_curves_have_other_formats_too():
    file = StringIO()
    report = report_in("json", Console(file=file))
    show_curves(
        {Target("one", Path("one"), None, None): [CLEAN, point("pgd20", 2, 3), point("pgd20", 4, 5)]}, report
    )
    report.end()
    document = json.loads(file.getvalue())
    assert document["tables"][0]["rows"] == [{"student": "one", "0": 90.0, "2/255": 30.0, "4/255": 50.0}]
    assert "PGD-20 is weaker at epsilon 4/255" in document["notes"][0]


@pytest.fixture
def student(tmp_path):
    def build(name, config, data="d"):
        run = RunFolder(tmp_path / name)
        run.create(config, {"data": {"folder": "", "train_sha256": data}}, force=False)
        return Target(f"{name} best", run.path, run, config, "best")

    return build


def test_runs_of_one_row_differ_in_their_seed_and_in_nothing_that_tells(student):
    alike = [student(str(seed), Config(seed=seed, log=LogConfig(every=seed + 1))) for seed in range(3)]
    others = [
        student("rate", Config(seed=3, optim=OptimConfig(lr=0.2))),
        student("data", Config(seed=4), data="e"),
        student("again", Config(seed=0)),
        replace(alike[0], checkpoint="last"),
    ]
    assert seed_groups([*others, *alike]) == [[others[2], *alike[1:]]]
    assert seed_groups([alike[0], others[2]]) == []


def test_mean_and_deviation_of_what_all_were_attacked_with(student):
    group = [student(str(seed), Config(seed=seed)) for seed in range(3)]
    figures = (3, 5, 7)
    results = {
        target: [point("clean", 8, 9), point("pgd20", 8, correct)]
        for target, correct in zip(group, figures, strict=True)
    }
    results[group[2]] = results[group[2]][1:]
    ((attack, spread),) = spreads(group, results)
    accuracies = [10 * figure for figure in figures]
    assert (attack, spread.mean, spread.deviation) == ("pgd20", mean(accuracies), stdev(accuracies))
    assert not spread.doubtful
