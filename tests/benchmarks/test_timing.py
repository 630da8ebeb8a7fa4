"""Measuring in alternation, by a clock that the tests turn themselves."""

import time
from contextlib import contextmanager

import pytest
import torch

from benchmarks.harness.measuring import (
    LEAST_ROUNDS,
    Duration,
    Flags,
    MemoryMeter,
    Rounds,
    alternate,
    in_turn,
    paired_ratios,
    released_flags,
    sets_beyond_cache,
)

CPU = torch.device("cpu")


class Clock:
    """Stands still but for what steps take."""

    def __init__(self) -> None:
        self.now = 0.0

    def step_of(self, seconds, log, name):
        def run(steps):
            log.append(name)
            self.now += steps * seconds

        return run


@pytest.fixture
def clock(monkeypatch):
    found = Clock()
    monkeypatch.setattr(time, "perf_counter", lambda: found.now)
    return found


def test_variants_take_turns(clock):
    log = []
    runs = {name: clock.step_of(seconds, log, name) for name, seconds in (("a", 0.1), ("b", 0.2), ("c", 0.4))}
    alternate(runs, CPU, Duration(rounds=4, seconds=0.4))
    assert log[-12:] == ["a", "b", "c"] * 4


def test_a_round_lasts_as_long_as_asked(clock):
    runs = {name: clock.step_of(seconds, [], name) for name, seconds in (("a", 0.01), ("b", 0.25))}
    found = alternate(runs, CPU, Duration(rounds=5, seconds=0.5))
    assert (found["a"].steps, found["b"].steps) == (50, 2)
    assert found["a"].seconds == pytest.approx([0.01] * 5)
    assert found["b"].rates(128) == pytest.approx([512] * 5)


def test_the_budget_ends_the_rounds_but_leaves_a_few(clock):
    runs = {"a": clock.step_of(1.0, [], "a")}
    assert (
        len(alternate(runs, CPU, Duration(rounds=50, seconds=1.0, budget=0.0))["a"].seconds) == LEAST_ROUNDS
    )
    assert 8 <= len(alternate(runs, CPU, Duration(rounds=50, seconds=1.0, budget=10.0))["a"].seconds) <= 10


def test_each_variant_runs_in_its_own_context(clock):
    inside = []

    @contextmanager
    def marked():
        inside.append("in")
        yield
        inside.append("out")

    def run(steps):
        assert inside[-1] == "in"
        clock.now += steps

    alternate({"a": run}, CPU, Duration(rounds=3, seconds=1.0), {"a": marked})
    assert inside == ["in", "out"] * 4


def test_ratios_are_taken_round_by_round():
    # Both slow down to half the speed: the ratio does not see it.
    assert paired_ratios(Rounds(1, [1.0, 2.0, 2.0]), Rounds(1, [0.5, 1.0, 1.0])) == [2.0, 2.0, 2.0]


def test_switches_are_put_back():
    before = Flags.current()
    with released_flags().applied():
        assert Flags.current() == released_flags()
    assert Flags.current() == before


def test_memory_of_a_cpu_is_not_measured():
    assert MemoryMeter(CPU).of(lambda: None) is None


def test_calls_come_in_turn_across_runs():
    log = []
    run = in_turn([lambda name=name: log.append(name) for name in "abc"])
    run(2)
    run(2)
    assert log == ["a", "b", "c", "a"]


def test_inputs_exceed_the_cache():
    assert sets_beyond_cache(1 << 30, CPU) == 2
    assert sets_beyond_cache(16, CPU, most=64) == 64
