"""Where the numbers of metrics.jsonl go too (log.to): TensorBoard, metrics.csv, Weights & Biases, MLflow."""

import csv
import importlib
import io
import json
import logging
import os
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any, Protocol

from fastpeer.config import Config
from fastpeer.config.toml import flat
from fastpeer.errors import UserError, brief
from fastpeer.files import read_text, write_atomically
from fastpeer.run_folder import RunFolder

log = logging.getLogger(__name__)

Record = Mapping[str, Any]
"""A line of metrics.jsonl: numbers, texts and nested mappings of numbers, with the run's `step`."""
Mark = tuple[int, str]
"""What tells a run's records apart: the step, and which kind it is."""
KINDS = ("selection", "cross_robustness")
"""Kinds of records at an epoch's end, each with a field of that name."""


class Logger(Protocol):
    """Takes a run's records."""

    def write(self, record: Record) -> None:
        """Take a record at its `step`."""

    def close(self) -> None:
        """Finish; a resumed run continues."""


@dataclass(frozen=True)
class Beginning:
    """What a logger begins with.

    Attributes:
        run: the run's folder.
        config: the run's settings.
        step: the run's step; records of later steps, of before the run was resumed, will be written again.
        lost: marks of those records.
    """

    run: RunFolder
    config: Config
    step: int
    lost: frozenset[Mark] = frozenset()


def open_loggers(beginning: Beginning) -> list[Logger]:
    """Open the loggers of log.to; one that fails, now or later, warns once and is left out from then on."""
    return [_Guarded(name, beginning) for name in beginning.config.log.to]


def check_loggers(names: Sequence[str]) -> None:
    """Make sure that the packages of loggers are installed.

    Raises:
        UserError: one is missing.
    """
    for name in names:
        if name in EXTRAS:
            try:
                importlib.import_module(name)
            except ImportError as error:
                raise UserError(
                    f"log.to {name}: the package cannot be imported ({brief(error)});"
                    f" pip install 'fastpeer[{name}]' installs it"
                ) from None


def mark_of(record: Record) -> Mark:
    """Return what tells a record apart from all others of its run."""
    return int(record["step"]), next((kind for kind in KINDS if kind in record), "")


class _Guarded:
    """A logger whose failure does not end a training."""

    def __init__(self, name: str, beginning: Beginning) -> None:
        self._name = name
        self._logger: Logger | None = None
        self._logger = self._carefully(LOGGERS[name], beginning)

    def write(self, record: Record) -> None:
        if self._logger is not None:
            self._carefully(self._logger.write, record)

    def close(self) -> None:
        if self._logger is not None:
            self._carefully(self._logger.close)

    def _carefully(self, action: Callable[..., Any], *words: Any) -> Any:
        try:
            return action(*words)
        except Exception as error:  # Whatever a network, a server or a full disk leads to.
            log.warning(
                "log.to %s failed (%s): the training goes on without it, metrics.jsonl has everything",
                self._name, brief(error),
            )  # fmt: skip
            self._logger = None


class TensorBoard:
    """Events in the run's folder tensorboard/."""

    def __init__(self, beginning: Beginning) -> None:
        self._folder, self._step = beginning.run.path / "tensorboard", beginning.step
        self._writer: Any = None

    def write(self, record: Record) -> None:
        """Add an event for each number."""
        if self._writer is None:
            # Imported with the first record: a second that the first step need not wait for.
            from torch.utils.tensorboard import SummaryWriter

            # Drops the events from that step on.
            self._writer = SummaryWriter(self._folder, purge_step=self._step + 1)
        for name, value in numbers(record):
            self._writer.add_scalar(name, value, record["step"])

    def close(self) -> None:
        """Write what is left."""
        if self._writer is not None:
            self._writer.close()


class Csv:
    """A row in the run's metrics.csv for each record; a new number adds a column, empty in earlier rows."""

    def __init__(self, beginning: Beginning) -> None:
        self._file = beginning.run.csv_file
        rows = [row for row in self._rows() if int(row["step"]) <= beginning.step]
        self._names = list(rows[0]) if rows else ["epoch", "step"]
        self._rewrite(rows)

    def write(self, record: Record) -> None:
        """Append a row."""
        row = {"epoch": record["epoch"], "step": record["step"], **dict(numbers(record))}
        if new := [name for name in row if name not in self._names]:
            self._names += new
            self._rewrite(self._rows())
        with self._file.open("a", encoding="utf-8", newline="") as file:
            csv.DictWriter(file, self._names, lineterminator="\n").writerow(row)

    def close(self) -> None:
        """Do nothing: each row is written at once."""

    def _rows(self) -> list[dict[str, Any]]:
        if not self._file.exists():
            return []
        with self._file.open(encoding="utf-8", newline="") as file:
            # A kill may have left half a row.
            return [row for row in csv.DictReader(file) if None not in row.values()]

    def _rewrite(self, rows: Sequence[Mapping[str, Any]]) -> None:
        text = io.StringIO()
        writer = csv.DictWriter(text, self._names, lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
        write_atomically(self._file, text.getvalue())


class _Remote:
    """A service that cannot take back what it was told: it is not told again.

    Its run's identity is kept in the run's folder, so that a resumed run continues it.
    """

    service: str

    def __init__(self, beginning: Beginning) -> None:
        self._told = set(beginning.lost)
        self._identities = beginning.run.loggers_file

    def write(self, record: Record) -> None:
        """Send a record's numbers, unless they were sent before the run was resumed."""
        mark = mark_of(record)
        if mark not in self._told:
            self._told.add(mark)
            self._send(dict(numbers(record)), record["step"])

    def _send(self, values: dict[str, float], step: int) -> None:
        raise NotImplementedError

    def _identity(self) -> str | None:
        return _read_identities(self._identities).get(self.service)

    def _keep(self, identity: str) -> None:
        known = {**_read_identities(self._identities), self.service: identity}
        write_atomically(self._identities, json.dumps(known) + "\n")


class WeightsAndBiases(_Remote):
    """A W&B run; the environment names its project (WANDB_PROJECT, else fastpeer) and mode (WANDB_MODE)."""

    service = "wandb"

    def __init__(self, beginning: Beginning) -> None:
        super().__init__(beginning)
        wandb: Any = importlib.import_module("wandb")
        identity = self._identity() or uuid.uuid4().hex
        # Before the run begins, which may fail or be killed: the next attempt is the same run.
        self._keep(identity)
        self._run = wandb.init(
            project=os.environ.get("WANDB_PROJECT") or "fastpeer", name=beginning.run.path.name, id=identity,
            resume="allow", dir=str(beginning.run.path), config=settings_of(beginning.config),
        )  # fmt: skip

    def close(self) -> None:
        """Send what is left."""
        self._run.finish()

    def _send(self, values: dict[str, float], step: int) -> None:
        self._run.log(values, step=step)


class Mlflow(_Remote):
    """An MLflow run, where MLFLOW_TRACKING_URI and MLFLOW_EXPERIMENT_NAME say."""

    service = "mlflow"

    def __init__(self, beginning: Beginning) -> None:
        super().__init__(beginning)
        self._mlflow: Any = importlib.import_module("mlflow")
        identity = self._identity()
        if identity is not None:
            self._mlflow.start_run(run_id=identity)
            return
        begun = self._mlflow.start_run(run_name=beginning.run.path.name)
        self._keep(begun.info.run_id)
        # Once: MLflow refuses other values later, such as more epochs.
        self._mlflow.log_params(settings_of(beginning.config))

    def close(self) -> None:
        """End the run."""
        self._mlflow.end_run()

    def _send(self, values: dict[str, float], step: int) -> None:
        self._mlflow.log_metrics(values, step=step)


LOGGERS: Mapping[str, Callable[[Beginning], Logger]] = MappingProxyType(
    {"tensorboard": TensorBoard, "csv": Csv, "wandb": WeightsAndBiases, "mlflow": Mlflow}
)
"""What opens a logger, by its name in log.to."""
EXTRAS = ("wandb", "mlflow")
"""Those whose package, of the same name, fastpeer does not require."""


def numbers(record: Record, prefix: str = "") -> Iterator[tuple[str, float]]:
    """Yield a record's numbers by name, nested ones as losses/peer_ce; without epoch and step."""
    for name, value in record.items():
        if isinstance(value, Mapping):
            yield from numbers(value, f"{prefix}{name}/")
        elif isinstance(value, (int, float)) and name not in ("step", "epoch"):
            yield prefix + name, value


def settings_of(config: Config) -> dict[str, Any]:
    """Return all settings by their dotted names; lists as texts, which every service can show."""
    values = flat(asdict(config))
    return {name: str(list(value)) if isinstance(value, tuple) else value for name, value in values.items()}


def _read_identities(file: Path) -> dict[str, str]:
    try:
        found: dict[str, str] = json.loads(read_text(file))
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}
