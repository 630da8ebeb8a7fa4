"""What is shown while a training runs, and that losses shown by the clock leave its record as it is."""

import io
import threading
import time

import pytest
import torch
from rich.console import Console

from fastpeer.step.step import StepResult
from fastpeer.training import progress
from fastpeer.training.log import Interval
from fastpeer.training.progress import BarReporter, LineReporter, Overdue, announcing


@pytest.fixture
def patience(monkeypatch):
    monkeypatch.setattr(progress, "PATIENCE", 0.02)


def wait_for(lines):
    for _ in range(200):
        if lines:
            return
        time.sleep(0.01)


def test_what_takes_long_is_logged_once(patience, logged):
    overdue = Overdue()
    overdue.begin("compiling")
    wait_for(logged)
    overdue.end()
    assert logged == ["compiling ..."]


def test_what_is_done_in_time_is_not_logged(logged):
    with announcing(Console(file=io.StringIO())) as announce:
        announce("reading")
        announce("building")
    assert logged == []
    assert not [thread for thread in threading.enumerate() if isinstance(thread, threading.Timer)
                and not thread.finished.is_set()]  # fmt: skip


def test_a_terminal_shows_at_once_what_is_done():
    shown = io.StringIO()
    with announcing(Console(file=shown, force_terminal=True, width=60)) as announce:
        announce("checking the teacher")
    assert "checking the teacher" in shown.getvalue()


RECORD = {
    "epoch": 0, "step": 1, "losses": {"ce": 1.5}, "accuracy": {"student_clean": 12.5},
    "images_per_second": 9.0, "lr": 0.1,
}  # fmt: skip


def test_lines_tell_the_time_left_from_the_second_step_on(logged):
    reporter = LineReporter()
    with reporter.running(7, 20, 5):
        reporter.busy("the first step")
        reporter.step(8)
        reporter.interval({**RECORD, "step": 8})
        reporter.step(9)
        reporter.interval({**RECORD, "step": 9})
    assert logged[0].startswith("epoch 0 step 8/20  9 images/s")
    assert logged[1].startswith("epoch 0 step 9/20 left 0:00:00  9 images/s")


def test_a_line_has_the_whole_loss_and_the_student_s_accuracies(logged):
    reporter = LineReporter()
    record = {
        **RECORD, "losses": {"peer_ce": 2.25, "student_kl_peer": 0.5},
        "accuracy": {"peer_adversarial": 6.25, "student_adversarial": 9.375, "student_clean": 10.9},
    }  # fmt: skip
    with reporter.running(0, 20, 5):
        reporter.interval(record)
    assert logged == [
        "epoch 0 step 1/20  9 images/s  loss 2.7500  train: adversarial 9.4% clean 10.9%  lr 0.1"
    ]


def test_bars_show_what_is_done_between_steps_and_the_losses_again():
    reporter = BarReporter(Console(file=io.StringIO(), force_terminal=True, width=80))
    with reporter.running(0, 10, 5):
        reporter.busy("compiling")
        assert reporter._bars.status == "compiling ..."
        reporter.step(1)
        reporter.interval(RECORD)
        losses = reporter._bars.status
        assert "ce 1.5000" in losses
        reporter.busy("evaluating")
        reporter.step(2)
        assert reporter._bars.status == losses


def result(loss):
    counts = torch.zeros(1, dtype=torch.int64)
    return StepResult(torch.tensor([loss]), torch.tensor([1]), counts, counts)


def test_showing_the_means_leaves_the_sums():
    quiet, shown = (Interval(["ce"], ["student_clean"], torch.device("cpu")) for _ in range(2))
    for loss in (1.0, 2.0, 6.0):
        quiet.add(result(loss), 4)
        shown.add(result(loss), 4)
        assert shown.means()["losses"]["ce"] == shown.means()["losses"]["ce"]
    assert shown.means()["losses"] == {"ce": 3.0}
    timed = "images_per_second"
    ours, theirs = shown.record(), quiet.record()
    assert {name: value for name, value in ours.items() if name != timed} == {
        name: value for name, value in theirs.items() if name != timed
    }
    assert shown.state()["images"] == 0
