"""What a run's files tell, read as far as they go: a run that trains, or a damaged line, is no error."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from fastpeer.config import Config
from fastpeer.errors import UserError
from fastpeer.evaluation.results import Result, read_results
from fastpeer.run_folder import RunFolder

Points = list[tuple[float, float]]
"""Of a curve: epochs and values."""


@dataclass(frozen=True)
class Records:
    """The lines of metrics.jsonl.

    Attributes:
        lines: those that can be read, in the order of the file.
        damaged: numbers of the others, from 1 on.
        cut: whether the only damage is a last line that is not whole, as of a run that trains.
    """

    lines: Sequence[Mapping[str, Any]]
    damaged: Sequence[int]
    cut: bool = False

    @property
    def last_step(self) -> int:
        """The last step that was logged; 0: none."""
        return max((int(line["step"]) for line in self.lines), default=0)

    def curve(self, *names: str, steps_per_epoch: int) -> Points:
        """Return a value, named by its keys from the outside in, over the epochs."""
        found = ((line, _value(line, names)) for line in self.lines)
        return [(int(line["step"]) / steps_per_epoch, value) for line, value in found if value is not None]

    def names(self, *outer: str) -> list[str]:
        """Return the keys that any line has below `outer`, in the order in which they appear."""
        found = (_inside(line, outer) for line in self.lines)
        return list(dict.fromkeys(name for table in found if isinstance(table, Mapping) for name in table))


def read_records(run: RunFolder) -> Records:
    """Return what a run has logged; a run without metrics.jsonl has logged nothing."""
    lines, damaged = [], []
    content = run.metrics_file.read_bytes() if run.metrics_file.is_file() else b""
    texts = content.splitlines()
    for number, text in enumerate(texts, 1):
        line = _record(text)
        if line is None:
            damaged.append(number)
        else:
            lines.append(line)
    return Records(lines, damaged, damaged == [len(texts)] and not _is_json(texts[-1]))


def _record(text: bytes) -> Mapping[str, Any] | None:
    try:
        line = json.loads(text)
        return line if isinstance(line, dict) and type(line["step"]) is int and line["step"] >= 0 else None
    except (ValueError, KeyError, RecursionError):
        return None


def _is_json(text: bytes) -> bool:
    try:
        json.loads(text)
    except (ValueError, RecursionError):
        return False
    return True


def _inside(line: Mapping[str, Any], names: Sequence[str]) -> object:
    value: object = line
    for name in names:
        value = value.get(name) if isinstance(value, Mapping) else None
    return value


def _value(line: Mapping[str, Any], names: Sequence[str]) -> float | None:
    value = _inside(line, names)
    return float(value) if isinstance(value, int | float) and not isinstance(value, bool) else None


@dataclass(frozen=True)
class RunReport:
    """All that a run's files tell.

    Attributes:
        run: its folder.
        name: by which it is told from others on the page.
        config, facts: of config.toml and run.json.
        records: of metrics.jsonl.
        results: of results.json.
        complaints: what of it could not be read, a line each.
    """

    run: RunFolder
    name: str
    config: Config
    facts: Mapping[str, Any]
    records: Records
    results: Sequence[Result]
    complaints: Sequence[str]

    @property
    def steps_per_epoch(self) -> int:
        """Steps of an epoch; 1 where they are not known."""
        return self._known_steps or 1

    @property
    def whole_length(self) -> int:
        """Steps of all epochs, whatever train.max_steps is; 0: not known."""
        return self.config.train.epochs * self._known_steps

    @property
    def _known_steps(self) -> int:
        """Steps of an epoch; of older runs, which did not record it, as an evaluated epoch tells; else 0."""
        # That may be wrong of a run that was cut short by train.max_steps.
        ends = [line for line in self.records.lines if "selection" in line and "epoch" in line]
        told = int(ends[0]["step"]) // (int(ends[0]["epoch"]) + 1) if ends else 0
        return int(self.facts.get("steps_per_epoch") or 0) or told

    @property
    def total_steps(self) -> int:
        """Steps of the whole training."""
        whole = self.config.train.epochs * self.steps_per_epoch
        return min(whole, self.config.train.max_steps or whole)

    @property
    def data(self) -> tuple[str, str]:
        """Name and checksum of the test images: runs with other ones cannot be compared."""
        data = self.facts["data"]
        return str(data.get("name", "")), str(data.get("test_sha256", ""))

    @property
    def training_seconds(self) -> float:
        """Time spent in training steps, as far as they were logged with a speed."""
        seconds, before = 0.0, 0
        for line in self.records.lines:
            speed = _value(line, ["images_per_second"])
            if speed:
                seconds += max(0, int(line["step"]) - before) * self.config.train.batch_size / speed
                before = int(line["step"])
        return seconds


def read_run(run: RunFolder, name: str) -> RunReport:
    """Return what a run's files tell.

    Raises:
        UserError: there is no run, or its settings or facts cannot be read.
    """
    config, facts, records = run.read_config(), run.read_facts(), read_records(run)
    complaints = [_damage(run, records)] if records.damaged else []
    results: list[Result] = []
    try:
        results = read_results(run.results_file)
    except UserError as error:
        complaints.append(str(error))
    return RunReport(run, name, config, facts, records, results, complaints)


def read_undamaged_run(run: RunFolder, name: str) -> RunReport:
    """Return what a run's files tell; a last line of its log that is not whole may be left out.

    Raises:
        UserError: there is no run, or any of its files cannot be read.
    """
    report = read_run(run, name)
    complaints = report.complaints[1:] if report.records.cut else report.complaints
    if complaints:
        raise UserError(complaints[0])
    return report


def _damage(run: RunFolder, records: Records) -> str:
    numbers = ", ".join(map(str, records.damaged[:5])) + (", …" if len(records.damaged) > 5 else "")
    return f"{run.metrics_file.name}: left out what cannot be read, line {numbers}"
