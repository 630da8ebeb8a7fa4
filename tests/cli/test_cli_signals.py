"""Ctrl-C, SIGTERM and SIGKILL: what was reached is kept, and going on leads to the very same weights."""

from __future__ import annotations

import re
import shlex
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from cli_files import Outcome, finish, metrics, start, weights

from fastpeer.step.step import TrainingStep
from fastpeer.training.averaging import AveragedStudent
from fastpeer.training.selection import Selection


def signals_before(
    patch: pytest.MonkeyPatch, owner: type, name: str, call: int, *numbers: signal.Signals
) -> None:
    """Send signals to this process when a method is called for the `call`th time."""
    method: Callable[..., Any] = getattr(owner, name)
    calls = 0

    def interrupted(*arguments: Any, **named: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls == call:
            for number in numbers:
                signal.raise_signal(number)
        return method(*arguments, **named)

    patch.setattr(owner, name, interrupted)


def stopped(outcome: Outcome, run: Path) -> None:
    """Require code 130 and a line that says how to go on."""
    assert outcome.code == 130
    assert outcome.err.count("\n") == 1, outcome.err
    assert outcome.err.startswith("fastpeer: ")
    assert f"fastpeer train --resume --out {shlex.quote(str(run))}" in outcome.err
    assert "Traceback" not in outcome.err


@pytest.mark.parametrize("number", [signal.SIGINT, pytest.param(signal.SIGTERM, marks=pytest.mark.soak)])
@pytest.mark.parametrize(
    ("owner", "name", "call"),
    [
        (TrainingStep, "train_on", 1),
        (TrainingStep, "train_on", 8),
        (Selection, "evaluate", 3),
        (AveragedStudent, "reestimate", 2),
        *(
            pytest.param(*place, marks=pytest.mark.soak)
            for place in (
                (TrainingStep, "train_on", 5),
                (TrainingStep, "train_on", 15),
                (Selection, "evaluate", 1),
                (AveragedStudent, "collect", 1),
            )
        ),
    ],
)
def test_a_stop_is_resumed_as_if_nothing_had_been(
    fastpeer, tmp_path: Path, original: Path, owner: type, name: str, call: int, number: signal.Signals
) -> None:
    run = tmp_path / "run"
    with pytest.MonkeyPatch.context() as patch:
        signals_before(patch, owner, name, call, number)
        stopped(fastpeer("train tiny.toml --quiet --out", run), run)
    fastpeer("train --resume --quiet --out", run).succeeded()
    assert weights(run) == weights(original)
    assert metrics(run) == metrics(original)


@pytest.mark.parametrize(
    ("owner", "name", "call"),
    [
        (TrainingStep, "train_on", 8),
        *(
            pytest.param(*place, marks=pytest.mark.soak)
            for place in ((Selection, "evaluate", 3), (AveragedStudent, "reestimate", 2))
        ),
    ],
)
def test_a_second_interrupt_stops_at_once(
    fastpeer, tmp_path: Path, original: Path, owner: type, name: str, call: int
) -> None:
    run = tmp_path / "run"
    with pytest.MonkeyPatch.context() as patch:
        signals_before(patch, owner, name, call, signal.SIGINT, signal.SIGINT)
        outcome = fastpeer("train tiny.toml --quiet --out", run)
    assert outcome.code == 130
    assert outcome.refused()
    fastpeer("train --resume --quiet --out", run).succeeded()
    assert weights(run) == weights(original)


def test_the_hint_can_be_pasted_into_a_shell(fastpeer, tmp_path: Path) -> None:
    run = tmp_path / "my first run"
    with pytest.MonkeyPatch.context() as patch:
        signals_before(patch, TrainingStep, "train_on", 2, signal.SIGINT)
        outcome = fastpeer("train tiny.toml --quiet --out", run)
    hint = outcome.err[outcome.err.index("fastpeer train") :].strip()
    fastpeer(hint.removeprefix("fastpeer ") + " --train.max-steps 3 --quiet").succeeded()


def test_handlers_are_put_back(fastpeer, tmp_path: Path) -> None:
    before = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)]
    fastpeer("train tiny.toml --train.max-steps 1 --quiet --out", tmp_path / "run").succeeded()
    assert [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)] == before


@pytest.mark.parametrize("number", [pytest.param(signal.SIGINT, marks=pytest.mark.soak), signal.SIGKILL])
def test_a_real_process(fastpeer, workshop: Path, tmp_path: Path, number: signal.Signals) -> None:
    run, whole = tmp_path / "run", tmp_path / "whole"
    words = ["tiny.toml", "--train.epochs", "1000", "--log.every", "1"]
    process = start("train", *words, "--out", str(run), cwd=workshop)
    step = 0
    assert process.stdout is not None
    for line in process.stdout:
        step = int(found[1]) if (found := re.match(r"epoch \d+ step (\d+)/", line)) else step
        if step >= 8:
            break
    # Whoever goes on with a run that is still going would spoil it.
    fastpeer("train --resume --quiet --out", run).refused(str(run))
    fastpeer("train tiny.toml --force --quiet --out", run).refused(str(run))
    process.send_signal(number)
    outcome = finish(process)
    if number == signal.SIGINT:
        stopped(outcome, run)
    step = (
        max([step, *(int(found) for found in re.findall(r"^epoch \d+ step (\d+)/", outcome.out, re.M))]) + 3
    )
    fastpeer(f"train --resume --train.max-steps {step} --quiet --out", run).succeeded()
    fastpeer("train --quiet --out", whole, *words, "--train.max-steps", step).succeeded()
    assert weights(run) == weights(whole)
    assert metrics(run) == metrics(whole)
    # The best two, the last, and the one before it.
    assert len(list((run / "checkpoints" / ".store").iterdir())) == 4
