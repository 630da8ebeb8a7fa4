"""How far an attack of an evaluation is: a bar on a terminal, now and then a line elsewhere."""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from rich.console import Console, RenderableType
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TimeElapsedColumn, TimeRemainingColumn
from rich.text import Text

from fastpeer.errors import printable
from fastpeer.printing import print_line

if TYPE_CHECKING:
    from fastpeer.evaluation import attacks
    from fastpeer.evaluation.protocol import Watch

LINE_SECONDS = 30.0
"""Seconds between two lines."""


def watch_on(console: Console) -> "Watch":
    """Return what shows the progress of each attack on a console."""

    @contextmanager
    def watch(what: str, images: int) -> "Iterator[attacks.Progress]":
        if console.is_terminal:
            with _AttackBar(console, what, images) as bar:
                yield bar.show
        else:
            yield _Lines(console, what, images).show

    return watch


class _AttackBar(Progress):
    """A bar below the attack's name, which may be too long to stand beside it."""

    def __init__(self, console: Console, what: str, images: int) -> None:
        self._what = self._title = what
        columns = (BarColumn(bar_width=20), MofNCompleteColumn(), TimeElapsedColumn(), TimeRemainingColumn())
        super().__init__(*columns, console=console, transient=True)
        self._task = self.add_task(what, total=images)

    def show(self, done: int, stage: str = "") -> None:
        """Move the bar, and name the part of the attack that runs."""
        self._title = _with_stage(self._what, stage)
        self.update(self._task, completed=done)

    def get_renderables(self) -> "Iterator[RenderableType]":
        """Return the name and the bar."""
        yield Text(printable(self._title))
        yield self.make_tasks_table(self.tasks)


class _Lines:
    def __init__(self, console: Console, what: str, images: int) -> None:
        self._console, self._what, self._images = console, what, images
        self._shown = time.monotonic()

    def show(self, done: int, stage: str = "") -> None:
        """Print a line, if the last one was long ago and something is left to do."""
        if done < self._images and time.monotonic() - self._shown >= LINE_SECONDS:
            self._shown = time.monotonic()
            print_line(self._console, f"{_with_stage(self._what, stage)}: {done} of {self._images} images")


def _with_stage(what: str, stage: str) -> str:
    return f"{what}, {stage}" if stage else what
