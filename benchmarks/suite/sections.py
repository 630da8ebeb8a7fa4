"""A section of a stage: one process, with a limit of time."""

import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

HERE = Path(__file__).resolve().parents[1]


@dataclass(frozen=True)
class Section:
    """One process of a stage.

    Attributes:
        name: of the section, and of its report and plot.
        words: its command: a module, such as benchmarks.throughput or pytest, and its arguments. In them
            {json} is the file of its report, {budget} the seconds that it may plan with, {work} a folder that
            outlives the stage, {images} an archive of images and {reference} a checkout of the released code.
        short: its arguments in the short form, for a CPU core.
        seconds: that it may take.
        least: it is not begun with less time left.
        reserve: seconds that those before it leave to it.
        beside: the sections behind it run beside it, until one joins.
        joins: waits for what runs beside, to measure alone.
        vital: without it, those behind it make no sense.
        needs: what must have been given: images, reference.
    """

    name: str
    words: tuple[str, ...]
    short: tuple[str, ...]
    seconds: float
    least: float = 20.0
    reserve: float = 0.0
    beside: bool = False
    joins: bool = False
    vital: bool = False
    needs: tuple[str, ...] = ()

    def command(self, short: bool, blanks: Mapping[str, str]) -> list[str]:
        """Return the command, its blanks filled in."""
        module, *rest = self.words
        words = [*(self.short if short else rest)]
        head = [module] if module.endswith(".py") else ["-m", module]
        return [sys.executable, *head, *(_filled(word, blanks) for word in words)]

    def obstacle(self, given: Mapping[str, str]) -> str:
        """Return what it needs and was not given, or nothing."""
        lacking = [f"--{name}" for name in self.needs if not given.get(name)]
        return f"needs {' and '.join(lacking)}" if lacking else ""


def _filled(word: str, blanks: Mapping[str, str]) -> str:
    for name, value in blanks.items():
        word = word.replace("{" + name + "}", value)
    return word
