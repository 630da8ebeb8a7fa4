"""A training of so many minutes: its schedule, and what is read from its log."""

import json
from types import SimpleNamespace

import pytest
import torch

from benchmarks.harness.record import Report
from benchmarks.quality import minutes
from benchmarks.quality.minutes import (
    Arguments,
    accuracy_curves,
    add_curves,
    draw,
    epochs_in,
    falls,
    minutes_left,
)
from fastpeer.errors import UserError

CPU = torch.device("cpu")


@pytest.mark.parametrize(
    ("epochs", "milestones"), [(300, [214, 259, 284]), (30, [21, 26, 28]), (4, [3]), (1, [1])]
)
def test_the_rate_falls_at_the_recipes_fractions(tmp_path, epochs, milestones):
    assert falls(Arguments(work=tmp_path), epochs) == milestones


def test_as_many_epochs_as_fit():
    dataset = SimpleNamespace(splits={"train": {"count": 50_000}})
    assert epochs_in(6, 10_000, dataset) == int(0.9 * 360 * 10_000 / 50_000)
    assert epochs_in(6, 10, dataset) == 1


def test_command_line_settings_overrule_the_recipe(tmp_path):
    arguments = Arguments(work=tmp_path, model="resnet8", batch=8, precision="fp32")
    settings = arguments.settings
    assert (settings.model.student, settings.model.peer, settings.train.batch_size) == (
        "resnet8",
        "resnet8",
        8,
    )
    assert Arguments(work=tmp_path, literal=True).run.name == "literal"
    assert arguments.run.name == "fastpeer"


def test_curves_come_from_the_runs_log(tmp_path):
    arguments = Arguments(work=tmp_path)
    arguments.run.mkdir(parents=True)
    lines = [
        {"epoch": 0, "step": 2, "losses": {"a": 1.0}, "images_per_second": 10.0},
        {"epoch": 0, "step": 4, "losses": {"a": 0.5}, "images_per_second": 200.0},
        {"epoch": 0, "step": 4, "selection": {"student": {"clean": 30.0, "pgd10": 10.0}}},
        {
            "epoch": 1,
            "step": 8,
            "selection": {"student": {"clean": 40.0, "pgd10": 20.0}, "swa": {"clean": 1.0}},
        },
    ]
    (arguments.run / "metrics.jsonl").write_text("\n".join(map(json.dumps, lines)))
    report = Report("minutes", arguments, CPU, None)
    add_curves(arguments, report)
    # The first line has the start in it.
    assert [one.value for one in report.records] == [200.0]
    assert list(accuracy_curves(report)) == [
        ("student", "clean", ([0, 1], [30.0, 40.0])),
        ("student", "pgd10", ([0, 1], [10.0, 20.0])),
        ("swa", "clean", ([1], [1.0])),
    ]
    draw(tmp_path / "curves.png", report, arguments)
    assert (tmp_path / "curves.png").stat().st_size > 1000


def test_a_failing_command_is_said_in_a_line(tmp_path, monkeypatch):
    monkeypatch.setattr(minutes, "show", lambda *what: None)
    with pytest.raises(UserError, match=r"exit status 2 fastpeer: no command tain"):
        minutes.command(["tain"], Arguments(work=tmp_path), 60)


def test_the_training_gets_what_the_budget_leaves(tmp_path):
    assert minutes_left(Arguments(work=tmp_path), 100.0) == 6.0
    assert minutes_left(Arguments(work=tmp_path, budget=415.0), 55.0) == 5.0
    assert minutes_left(Arguments(work=tmp_path, budget=10_000.0), 55.0) == 6.0
