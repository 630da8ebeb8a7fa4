"""The pace of a training: without the warm-up, without compiling, and waiting for nothing but at its ends."""

from types import SimpleNamespace

import pytest
import torch

from fastpeer.printing import format_seconds
from fastpeer.training.forecast import Pace, Part, describe_parts, timed

CPU = torch.device("cpu")


class Clock:
    """Seconds that pass only when they are told to."""

    def __init__(self):
        self.now = 100.0

    def __call__(self):
        return self.now


def measured(seconds, compiler=None, at_step=lambda number: None):
    """Return a pace after steps of so many seconds each, until it is measured."""
    clock = Clock()
    pace = Pace(CPU, compiler, clock)
    for number, each in enumerate(seconds):
        clock.now += each
        at_step(number)
        if pace.step_done():
            return pace
    return pace


@pytest.mark.parametrize(
    ("seconds", "pace", "steps"),
    [
        ([60, 9, 9, *[0.1] * 50], 0.1, 20),
        ([60, 9, 9, *[6.0] * 50], 6.0, 2),
        ([60, 9, 9, *[2.0] * 50], 2.0, 5),
        ([60, 9, 9, 50.0, 50.0], 50.0, 1),
        ([60, 9, 9, 1.0], 0, 1),
    ],
)
def test_the_warm_up_is_not_timed(seconds, pace, steps):
    found = measured(seconds, SimpleNamespace(seconds={}))
    assert found.seconds == pytest.approx(pace)
    assert found.steps == steps


@pytest.mark.parametrize(
    ("seconds", "pace", "steps"),
    [([60, 50], 50, 1), ([4, 4, 4, 4, 4, 4], 4, 3), ([1, 1, 1, *[0.1] * 50], 0.1, 20)],
)
def test_slow_steps_warm_up_faster_where_nothing_is_compiled(seconds, pace, steps):
    found = measured(seconds)
    assert found.seconds == pytest.approx(pace)
    assert found.steps == steps


def test_compiling_does_not_count():
    compiler = SimpleNamespace(seconds={"the attack": 30.0})

    def compile_at(number):
        if number == 5:
            compiler.seconds = {"the attack": 30.0, "the step": 40.0}

    seconds = [1.0] * 5 + [41.0] + [1.0] * 50
    assert measured(seconds, compiler, compile_at).seconds == pytest.approx(1.0)


def test_what_lies_between_epochs_does_not_count():
    clock = Clock()
    pace = Pace(CPU, None, clock)
    for step in range(60):
        if step == 10:
            clock.now += 500
            pace.pause()
        clock.now += 0.5
        if pace.step_done():
            break
    assert pace.seconds == pytest.approx(0.5)
    assert "500 ms a step (measured over 20): 7200 steps left take 60.0 min" in pace.describe(7200)


@pytest.mark.parametrize(("kind", "runs"), [("cpu", 2), ("cuda", 4)])
def test_an_action_is_timed_when_it_is_compiled_and_captured(monkeypatch, kind, runs):
    monkeypatch.setattr(torch.cuda, "synchronize", lambda device: None)
    calls = []
    timed(lambda: calls.append(None), torch.device(kind), compiles=True)
    assert len(calls) == runs


def test_the_parts_are_added_up():
    parts = [Part("step", 36000, 0.5), Part("evaluation", 200, 18.0), Part("pass", 0, 0.0)]
    assert list(describe_parts(parts)) == [
        "estimated time: 6.0 h", "  step: 36000 times 500 ms, 5.0 h",
        "  evaluation: 200 times 18.0 s, 60.0 min",
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("seconds", "text"), [(0.0123, "12 ms"), (12.34, "12.3 s"), (600, "10.0 min"), (7200, "2.0 h")]
)
def test_durations_are_in_the_unit_that_suits(seconds, text):
    assert format_seconds(seconds) == text
