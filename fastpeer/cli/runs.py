"""`fastpeer runs`: the runs in a folder, how far they are and what they reached."""

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from rich.console import Console
from tyro.conf import Positional, arg

from fastpeer.cli.arguments import parse
from fastpeer.errors import UserError, one_line
from fastpeer.evaluation.results import cell, usual_of_student
from fastpeer.own_code import Untrusted
from fastpeer.printing import FigureTable, Row, print_line, print_tables
from fastpeer.report.records import RunReport, read_undamaged_run
from fastpeer.report.state import state_of
from fastpeer.run_folder import PARTS, RunFolder

TESTS = {"clean": "clean", "fgsm": "FGSM", "pgd20": "PGD-20", "aa": "AA"}
"""Attacks of `fastpeer eval` that have a column, with its heading."""
HEADINGS = (
    "run", "state", "method", "student", "data", "best clean", "best PGD",
    *(f"test {heading}" for heading in TESTS.values()), "age",
)  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class RunsArguments:
    """List runs, the newest first, with accuracies in %."""

    folder: Annotated[Positional[Path], arg(metavar="[FOLDER]")] = Path("runs")
    """A folder of runs, or a run."""
    trust: bool = False
    """Import the methods of your own that runs name in config.toml; it runs code."""


@dataclass(frozen=True)
class Listed:
    """A run's line: its cells but for the name, and when it was written to last."""

    run: RunFolder
    written: float
    cells: Sequence[str]


def runs_command(words: Sequence[str]) -> None:
    """Print a line for each run in a folder.

    Raises:
        UserError: there is none.
    """
    folder = parse(RunsArguments, words, "fastpeer runs").folder
    listed: list[Listed] = []
    damaged: list[str] = []
    for run in _runs(folder):
        try:
            listed.append(_listed(run))
        # Whatever a damaged file leads to: the other runs are to be listed.
        except (
            UserError, OSError, ValueError, KeyError, TypeError, AttributeError, IndexError, ArithmeticError,
            RecursionError,
        ) as error:  # fmt: skip
            damaged.append(_damage(run, error))
    console = Console()
    if listed:
        print_tables(console, [_table(sorted(listed, key=lambda entry: -entry.written))])
        print_line(
            console,
            "best: of the selection (held-out or test images, see fastpeer info); test: eval's, on all test"
            " images, L-infinity 8/255, PGD in steps of 2/255",
        )
    for line in damaged:
        print_line(console, line)


def _runs(folder: Path) -> list[RunFolder]:
    if RunFolder(folder).exists:
        return [RunFolder(folder)]
    runs = [
        RunFolder(path) for path in sorted(folder.glob("*/")) if any((path / part).exists() for part in PARTS)
    ]
    if not runs:
        raise UserError(f"no run in {folder}/: name a folder of runs, or train one with fastpeer train")
    return runs


def _damage(run: RunFolder, error: Exception) -> str:
    if isinstance(error, Untrusted):
        return str(error)
    missing = [file.name for file in (run.config_file, run.facts_file) if not file.is_file()]
    reason = f"{' and '.join(missing)} missing" if missing else one_line(error)
    return f"{run.path}: damaged ({reason})"


def _table(listed: Sequence[Listed]) -> FigureTable:
    """Return the table, without the columns that are empty in all lines."""
    columns = list(zip(*(entry.cells for entry in listed), strict=True))
    used = [number for number, cells in enumerate(columns) if any(cells)]
    headings = (HEADINGS[0], *(HEADINGS[number + 1] for number in used))
    rows = [Row(str(entry.run.path), [entry.cells[number] for number in used]) for entry in listed]
    return FigureTable(headings, [rows])


def _listed(run: RunFolder) -> Listed:
    report, written = read_undamaged_run(run, str(run.path)), run.last_written()
    best = _best(report)
    cells = (
        state_of(report), report.config.method, report.config.model.student, report.data[0],
        *(f"{best[name]:.2f}" if name in best else "" for name in ("clean", "robust")),
        *_tests(report), _age(time.time() - written),
    )  # fmt: skip
    return Listed(run, written, cells)


def _best(report: RunReport) -> dict[str, float]:
    """Return clean and robust accuracy of the epoch that was selected; empty: none was evaluated."""
    config = report.config
    students = [line["selection"]["student"] for line in report.records.lines if "selection" in line]
    robust = f"pgd{config.selection.steps}"
    found = [{"clean": student["clean"], "robust": student[robust]} for student in students]
    order = ("robust", "clean") if config.table.seeks_robustness else ("clean", "robust")
    return max(found, key=lambda entry: [entry[name] for name in order], default={})


def _tests(report: RunReport) -> Iterator[str]:
    """Yield the accuracies that eval found last for the best student, else for any, on all test images."""
    found = usual_of_student(report.results)
    for attack in TESTS:
        yield cell(found[attack]) if attack in found else ""


def _age(seconds: float) -> str:
    for unit, size in (("d", 86400), ("h", 3600), ("min", 60)):
        if seconds >= 2 * size:
            return f"{seconds / size:.0f} {unit}"
    return f"{max(0, seconds):.0f} s"
