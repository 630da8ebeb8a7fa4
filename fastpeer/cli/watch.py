"""`fastpeer watch`: how runs go on, from another terminal; it reads their files and nothing else."""

import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.text import Text
from tyro.conf import Positional, arg

from fastpeer.cli.arguments import parse
from fastpeer.errors import UserError, printable
from fastpeer.printing import format_seconds, print_line
from fastpeer.report.records import RunReport, read_run
from fastpeer.report.state import state_of
from fastpeer.run_folder import RunFolder, newest_run

BLOCKS = "▁▂▃▄▅▆▇█"
EVERY = 2.0
"""Seconds between two looks at the files."""


@dataclass(frozen=True, kw_only=True)
class WatchArguments:
    """Show runs while they train, several at once, until all have stopped; into a pipe, how they are now."""

    runs: Annotated[Positional[tuple[Path, ...]], arg(metavar="[RUN ...]")] = ()
    """Folders of runs; default: the newest run in runs/."""
    trust: bool = False
    """Import the methods of your own that runs name in config.toml; it runs code."""


def watch_command(words: Sequence[str]) -> None:
    """Show the runs that the words behind `fastpeer watch` name.

    Raises:
        UserError: there is no run, or its files cannot be read.
    """
    paths = parse(WatchArguments, words, "fastpeer watch").runs or (newest_run().path,)
    runs = [RunFolder(path) for path in dict.fromkeys(paths)]
    reports = [_read(run) for run in runs]
    console = Console()
    if not console.is_terminal:
        for report in reports:
            for line in _lines(report, 80):
                print_line(console, line)
        return
    with Live(_shown(reports, console), console=console, auto_refresh=False) as live:
        while any(run.is_locked() for run in runs):
            time.sleep(EVERY)
            live.update(_shown([_read(run) for run in runs], console), refresh=True)


def _read(run: RunFolder) -> RunReport:
    return read_run(run, str(run.path))


def _shown(reports: Sequence[RunReport], console: Console) -> RenderableType:
    """Return all runs, with an empty line between them; a terminal that is too low shows the first ones."""
    texts = []
    for report in reports:
        name, *others = _lines(report, console.width)
        texts += [Text(printable(name), "bold"), *(Text(printable(line)) for line in others), Text()]
    return Group(*texts[:-1])


def _lines(report: RunReport, width: int) -> Iterator[str]:
    """Yield the lines about a run, no wider than `width` but for names that are."""
    yield f"{report.run.path}  {_state(report)}"
    yield _bar(report, width)
    latest = [line for line in report.records.lines if "losses" in line]
    if latest:
        yield from _wrapped("losses", _figures(latest[-1].get("losses"), ".3f"), width)
        yield from _wrapped("training", _figures(latest[-1].get("accuracy"), ".1f"), width)
    yield from _selections(report, width)
    yield from report.complaints


def _state(report: RunReport) -> str:
    try:
        return state_of(report)
    except UserError as error:
        # The curves are there all the same.
        return f"damaged ({error})"


def _bar(report: RunReport, width: int) -> str:
    step, total = report.records.last_step, report.total_steps
    speeds = [line["images_per_second"] for line in report.records.lines if "images_per_second" in line]
    speed = f", {speeds[-1]:.1f} images/s" if speeds and isinstance(speeds[-1], int | float) else ""
    left = (total - step) * report.config.train.batch_size / speeds[-1] if speed and speeds[-1] > 0 else 0
    rest = f", {format_seconds(left)} left" if left and report.run.is_locked() else ""
    text = f" step {step:,} of {total:,}{speed}{rest}"
    length = max(0, min(30, width - len(text)))
    filled = round(length * min(step / max(total, 1), 1))
    return f"{'━' * filled}{'─' * (length - filled)}{text}" if length >= 5 else text.strip()


def _figures(table: object, form: str) -> list[str]:
    entries: Mapping[str, Any] = table if isinstance(table, dict) else {}
    return [
        f"{name.replace('_', ' ')} {value:{form}}"
        for name, value in entries.items()
        if isinstance(value, int | float)
    ]


def _wrapped(heading: str, parts: Sequence[str], width: int) -> Iterator[str]:
    """Yield parts behind a heading, broken between them."""
    line = ""
    for part in parts:
        if line and len(line) + len(part) + 2 > width - 10:
            yield f"{heading:<10}{line}"
            heading, line = "", ""
        line = f"{line}, {part}" if line else part
    if line:
        yield f"{heading:<10}{line}"


def _selections(report: RunReport, width: int) -> Iterator[str]:
    """Yield the accuracies at the ends of epochs: a line of blocks, 0 to 100 %, and the last one."""
    for network in report.records.names("selection"):
        for attack in report.records.names("selection", network):
            names = ("selection", network, attack)
            values = [value for _, value in report.records.curve(*names, steps_per_epoch=1)]
            text = f"{f'{network} {attack}'.replace('_', ' '):<26}"
            room = max(4, min(40, width - len(text) - 8))
            if values:
                yield f"{text}{values[-1]:6.2f}  {_sparkline(values[-room:])}"


def _sparkline(values: Sequence[float]) -> str:
    places = (min(max(value, 0.0), 99.9) * len(BLOCKS) / 100 for value in values)
    return "".join(BLOCKS[int(place)] if place == place else "?" for place in places)
