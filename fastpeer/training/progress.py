"""A run's progress on the screen: bars on a terminal, lines in the log elsewhere, or nothing."""

import logging
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from datetime import timedelta
from typing import Any

from rich.console import Console, RenderableType
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.text import Text

log = logging.getLogger(__name__)
PATIENCE = 5.0
"""Seconds after which a line tells what the program is busy with, where nothing else shows it."""


class Overdue:
    """Logs what a program is busy with, once that has lasted a while."""

    def __init__(self) -> None:
        self._timer: threading.Timer | None = None

    def begin(self, what: str) -> None:
        """Begin something; what was begun before has ended."""
        self.end()
        self._timer = threading.Timer(PATIENCE, log.info, (f"{what} ...",))
        # It must not keep a program alive that ends by an error.
        self._timer.daemon = True
        self._timer.start()

    def end(self) -> None:
        """End what was begun last."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None


@contextmanager
def announcing(console: Console) -> Iterator[Callable[[str], None]]:
    """Yield a function that is told what is done from now on.

    A terminal shows it at once, in a status line; elsewhere a line is logged once it has taken a while.
    """
    if console.is_terminal:
        with console.status("") as status:
            yield status.update
        return
    overdue = Overdue()
    try:
        yield overdue.begin
    finally:
        overdue.end()


class Reporter:
    """Shows nothing; base class of the reporters that do."""

    @contextmanager
    def running(self, step: int, total: int, steps_per_epoch: int) -> Iterator[None]:
        """Enclose a training of `total` steps that stands at `step`."""
        yield

    def step(self, step: int) -> None:
        """Report that `step` steps of the run are done."""

    def busy(self, what: str) -> None:
        """Report what is done until the next step: compiling, averaging or evaluating."""

    def interval(self, record: Mapping[str, Any]) -> None:
        """Report losses, accuracies, speed and learning rate, as in a record of the log."""

    def epoch(self, record: Mapping[str, Any]) -> None:
        """Report the accuracies at an epoch's end."""


class LineReporter(Reporter):
    """Logs a line for each interval and each evaluated epoch."""

    @contextmanager
    def running(self, step: int, total: int, steps_per_epoch: int) -> Iterator[None]:
        """Enclose the training."""
        self._total = total
        self._began: float | None = None
        self._overdue = Overdue()
        try:
            yield
        finally:
            self._overdue.end()

    def step(self, step: int) -> None:
        """Start the clock that the remaining time is estimated from, after the first step."""
        self._overdue.end()
        if self._began is None:
            # Not before: the first step compiles.
            self._first, self._began = step, time.monotonic()

    def busy(self, what: str) -> None:
        """Log it if it takes long."""
        self._overdue.begin(what)

    def interval(self, record: Mapping[str, Any]) -> None:
        """Log loss and speed, and the time left at the average speed since the first step."""
        where = record["epoch"], record["step"], self._total
        log.info("epoch %d step %d/%d%s  %s", *where, self._left(record["step"]), short_text(record))

    def _left(self, step: int) -> str:
        if self._began is None or step <= self._first:
            return ""
        seconds_per_step = (time.monotonic() - self._began) / (step - self._first)
        return f" left {timedelta(seconds=round(seconds_per_step * (self._total - step)))}"

    def epoch(self, record: Mapping[str, Any]) -> None:
        """Log the accuracies in one line."""
        self._overdue.end()
        log.info(epoch_text(record))


class BarReporter(Reporter):
    """Shows two bars, for the epoch and for the run, below a line for each evaluated epoch."""

    def __init__(self, console: Console) -> None:
        self.console = console

    @contextmanager
    def running(self, step: int, total: int, steps_per_epoch: int) -> Iterator[None]:
        """Show the bars while the training runs."""
        self._steps_per_epoch = steps_per_epoch
        self._losses = ""
        with _Bars(self.console) as self._bars:
            self._epoch_bar = self._bars.add_task("epoch", total=steps_per_epoch)
            self._run_bar = self._bars.add_task("run", total=total, completed=step)
            yield

    def step(self, step: int) -> None:
        """Advance the epoch's bar and the run's."""
        epoch, within = divmod(step - 1, self._steps_per_epoch)
        self._bars.status = self._losses
        self._bars.update(self._epoch_bar, completed=within + 1, description=f"epoch {epoch}")
        self._bars.update(self._run_bar, completed=step)

    def busy(self, what: str) -> None:
        """Show it in the line above the bars, until the next step."""
        self._bars.status = f"{what} ..."

    def interval(self, record: Mapping[str, Any]) -> None:
        """Show losses and speed in the line above the bars."""
        self._bars.status = self._losses = interval_text(record)

    def epoch(self, record: Mapping[str, Any]) -> None:
        """Log the accuracies in one line, above the bars."""
        log.info(epoch_text(record))


class _Bars(Progress):
    """Progress bars with a status line above them."""

    def __init__(self, console: Console) -> None:
        self.status = ""
        columns = (
            TextColumn("{task.description}"),
            BarColumn(bar_width=24),
            TextColumn("{task.completed}/{task.total}"),
            TimeElapsedColumn(),
            TextColumn("left"),
            TimeRemainingColumn(),
        )
        super().__init__(*columns, console=console, transient=True, speed_estimate_period=300)

    def get_renderables(self) -> Iterator[RenderableType]:
        """Return the status line and the bars."""
        yield Text(self.status, style="dim")
        yield self.make_tasks_table(self.tasks)


def interval_text(record: Mapping[str, Any]) -> str:
    """Format losses, training accuracies, speed and learning rate in one line."""
    losses = " ".join(
        f"{name} {value:.4f}" if value < 1e4 else f"{name} {value:.3g}"
        for name, value in record["losses"].items()
    )
    accuracies = " ".join(f"{name} {value:.1f}%" for name, value in record["accuracy"].items())
    speed = f"{record['images_per_second']:.0f} images/s"
    return f"{speed}  weighted losses: {losses}  train: {accuracies}  lr {record['lr']:g}"


def short_text(record: Mapping[str, Any]) -> str:
    """Format speed, the whole loss, the student's training accuracies and the learning rate."""
    accuracies = " ".join(
        f"{name.removeprefix('student_')} {value:.1f}%"
        for name, value in record["accuracy"].items()
        if name.startswith("student_")
    )
    loss = sum(record["losses"].values())
    speed = f"{record['images_per_second']:.0f} images/s"
    return f"{speed}  loss {loss:.4f}  train: {accuracies}  lr {record['lr']:g}"


def epoch_text(record: Mapping[str, Any]) -> str:
    """Format the accuracies at an epoch's end in one line."""
    parts = (
        f"{network} {' / '.join(f'{value:.1f}' for value in accuracies.values())}"
        for network, accuracies in record["selection"].items()
    )
    return f"epoch {record['epoch']}, {record['split']}:  {'  '.join(parts)}"


def choose_reporter(quiet: bool, console: Console) -> Reporter:
    """Return bars for a terminal, log lines for anything else, and nothing when quiet."""
    if quiet:
        return Reporter()
    return BarReporter(console) if console.is_terminal else LineReporter()
