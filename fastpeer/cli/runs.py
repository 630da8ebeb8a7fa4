"""`fastpeer runs`: the runs in a folder, how far they are and what they reached."""

import json
import re
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

from rich.console import Console
from safetensors import SafetensorError, safe_open
from tyro.conf import Positional, arg

from fastpeer.cli.arguments import parse
from fastpeer.config import Config
from fastpeer.errors import UserError, one_line
from fastpeer.evaluation.results import Result, cell, read_results
from fastpeer.models.weight_facts import recorded_facts
from fastpeer.own_code import Untrusted
from fastpeer.printing import FigureTable, Row, print_line, print_tables
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
    config, facts = run.read_config(), run.read_facts()
    records, written = _records(run), run.last_written()
    best = _best(config, records)
    data = str(facts["data"].get("name", ""))
    cells = (
        _state(run, config, facts, records), config.method, config.model.student, data,
        *(f"{best[name]:.2f}" if name in best else "" for name in ("clean", "robust")),
        *_tests(run), _age(time.time() - written),
    )  # fmt: skip
    return Listed(run, written, cells)


def _records(run: RunFolder) -> list[Mapping[str, Any]]:
    """Return the lines of metrics.jsonl; the last one of a run that is written to may be incomplete."""
    records = []
    if run.metrics_file.is_file():
        for line in run.metrics_file.read_bytes().splitlines():
            with suppress(ValueError):
                records.append(json.loads(line))
    return [record for record in records if isinstance(record, dict) and "step" in record]


def _state(
    run: RunFolder, config: Config, facts: Mapping[str, Any], records: Sequence[Mapping[str, Any]]
) -> str:
    saved, seen = _saved_step(run), max((record["step"] for record in records), default=0)
    whole, limit = _whole_length(config, facts, records), config.train.max_steps
    total = min(whole, limit or whole) or limit
    of = f" of {total}" if total else ""
    if run.is_locked():
        return f"running, step {max(saved, seen)}{of}"
    if 0 < limit <= saved < whole:
        return f"at train.max_steps, {saved} of {whole}"
    if total and saved >= total and _is_complete(config, records, saved):
        return "finished"
    if not max(saved, seen):
        return "no step saved"
    if seen > saved:
        return f"failed after step {seen}{of}, saved at {saved}"
    return f"stopped at step {saved}{of}"


def _saved_step(run: RunFolder) -> int:
    """Return the step of the last checkpoint; 0: there is none, or only that of the beginning."""
    weights = run.checkpoint("last") / "student.safetensors"
    if not weights.is_file():
        return 0
    try:
        with safe_open(weights, "numpy"):
            pass
    except SafetensorError as error:
        raise UserError(f"{weights.name}: {one_line(error)}") from None
    # Weights of older versions do not tell the step, but the name of their folder does.
    named = re.fullmatch(r"last-(\d+)", weights.parent.resolve().name)
    return recorded_facts(weights).step or (int(named[1]) if named else 0)


def _whole_length(config: Config, facts: Mapping[str, Any], records: Sequence[Mapping[str, Any]]) -> int:
    """Return the number of steps of all epochs, whatever train.max_steps is; 0: unknown."""
    per_epoch = facts.get("steps_per_epoch", 0)
    if not per_epoch:
        # Of older versions: an evaluated epoch tells, unless the run was cut short by train.max_steps.
        ends = [record["step"] // (record["epoch"] + 1) for record in records if "selection" in record]
        per_epoch = ends[0] if ends else 0
    return int(config.train.epochs * per_epoch)


def _is_complete(config: Config, records: Sequence[Mapping[str, Any]], step: int) -> bool:
    """Whether the last epoch was evaluated, or was not to be: train.max_steps may end within an epoch."""
    evaluated = any("selection" in record and record["step"] == step for record in records)
    return evaluated or 0 < config.train.max_steps <= step


def _best(config: Config, records: Sequence[Mapping[str, Any]]) -> dict[str, float]:
    """Return clean and robust accuracy of the epoch that was selected; empty: none was evaluated."""
    students = [record["selection"]["student"] for record in records if "selection" in record]
    robust = f"pgd{config.selection.steps}"
    found = [{"clean": student["clean"], "robust": student[robust]} for student in students]
    order = ("robust", "clean") if config.table.seeks_robustness else ("clean", "robust")
    return max(found, key=lambda entry: [entry[name] for name in order], default={})


def _tests(run: RunFolder) -> Iterator[str]:
    """Yield the accuracies that eval found last for the best student, else for any, on all test images."""
    results = []
    if run.results_file.exists():
        results = [result for result in read_results(run.results_file) if _is_usual(result)]
    best = [result for result in results if result.target.endswith(" best")]
    found = {result.attack: cell(result) for result in best or results}
    for attack in TESTS:
        yield found.get(attack, "")


def _is_usual(result: Result) -> bool:
    """Whether a result may stand beside those of other runs."""
    if result.images < result.total or result.role or result.source:
        return False
    ball = (result.norm, result.epsilon) == ("linf", 8 / 255)
    steps = not result.attack.startswith("pgd") or result.step_size == 2 / 255
    return result.attack == "clean" or (ball and steps)


def _age(seconds: float) -> str:
    for unit, size in (("d", 86400), ("h", 3600), ("min", 60)):
        if seconds >= 2 * size:
            return f"{seconds / size:.0f} {unit}"
    return f"{max(0, seconds):.0f} s"
