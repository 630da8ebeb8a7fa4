"""Finds the weights to evaluate, and the runs they belong to."""

import logging
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from fastpeer.checkpoint import load_state
from fastpeer.config import Config
from fastpeer.data.dataset import file_sha256
from fastpeer.errors import UserError
from fastpeer.links import student_weights
from fastpeer.models.weight_files import check_safetensors
from fastpeer.run_folder import RunFolder, enclosing_run, runs_in
from fastpeer.suggestions import did_you_mean

log = logging.getLogger(__name__)

CHECKPOINTS = {
    "last": ("last", "student.safetensors"),
    "swa": ("last", "swa.safetensors"),
    "best": ("best", "student.safetensors"),
    "best-swa": ("best-swa", "student.safetensors"),
}
"""By the names on the command line: a run's checkpoint, and the weight file in it."""


@dataclass(frozen=True)
class Target:
    """A student's weights.

    Attributes:
        label: its name in tables.
        weights: the weight file.
        run: the run it belongs to, or None.
        config: the run's settings, or None.
    """

    label: str
    weights: Path
    run: RunFolder | None
    config: Config | None

    @property
    def results_file(self) -> Path:
        """The file for its results: in the run, or beside weights that belong to none."""
        return self.run.results_file if self.run else Path(f"{self.weights}.results.json")

    @property
    def verdicts_folder(self) -> Path:
        """The folder for what each image fell to: in the run, or beside weights that belong to none."""
        return self.run.verdicts if self.run else Path(f"{self.weights}.verdicts")

    @cached_property
    def sha256(self) -> str:
        """SHA-256 of the weight file; computed once."""
        return file_sha256(self.weights)


def find_targets(paths: Sequence[Path], checkpoints: str) -> list[Target]:
    """Return the weights that paths on the command line stand for, in their order.

    Args:
        paths: run folders, folders of runs, checkpoint folders or weight files.
        checkpoints: for run folders: comma-separated names of `CHECKPOINTS`; all or empty: all that exist.

    Raises:
        UserError: there is nothing to evaluate at a path, or a checkpoint is missing.
    """
    paths = list(dict.fromkeys(found for path in paths for found in _runs_at(path, checkpoints) or [path]))
    names = [path.name for path in paths]
    targets: list[Target] = []
    for path in paths:
        # The folder's name alone, where it is unique.
        name = path.name if path.name and names.count(path.name) == 1 else str(path)
        targets += _targets_at(path, name, checkpoints)
    return targets


def _runs_at(path: Path, checkpoints: str) -> list[Path]:
    """Return the runs in a folder of runs that can be evaluated; the others are logged.

    Raises:
        UserError: there are runs, but none can be evaluated.
    """
    if not path.is_dir() or RunFolder(path).exists or (path / "student.safetensors").is_file():
        return []
    usable, reasons = [], []
    for run in runs_in(path):
        try:
            for target in _targets_of_run(run, run.path.name, checkpoints):
                check_safetensors(target.weights)
            run.read_facts()
            usable.append(run.path)
        except UserError as error:
            reasons.append(error)
    if reasons and not usable:
        raise reasons[0]
    for reason in reasons:
        log.warning("left out: %s", reason)
    return usable


def _targets_at(path: Path, name: str, checkpoints: str) -> list[Target]:
    run = RunFolder(path)
    if run.exists:
        return list(_targets_of_run(run, name, checkpoints))
    weights = student_weights(path)
    if weights is None:
        raise UserError(f"{path}: neither a run folder nor a file with weights")
    owner = enclosing_run(weights)
    return [Target(str(path), weights, owner, owner.read_config() if owner else None)]


def _targets_of_run(run: RunFolder, label: str, checkpoints: str) -> Iterator[Target]:
    config = run.read_config()
    requested = [name.strip() for name in checkpoints.split(",") if name.strip()]
    use_all = not requested or "all" in requested
    names = list(CHECKPOINTS) if use_all else requested
    count = 0
    for name in names:
        if name not in CHECKPOINTS:
            raise UserError(f"unknown checkpoint {name}; {did_you_mean(name, CHECKPOINTS)}")
        checkpoint, file = CHECKPOINTS[name]
        weights = run.checkpoint(checkpoint) / file
        if weights.is_file() and not (name == "swa" and _average_is_unfinished(run)):
            count += 1
            yield Target(f"{label} {name}", weights, run, config)
        elif not use_all:
            raise UserError(f"{run.path} holds no checkpoint {name}")
    if not count:
        advice = f"continue with fastpeer train --resume --out {run.path}, or start again with --force"
        raise UserError(f"{run.path} holds no checkpoint yet: {advice}")


def _average_is_unfinished(run: RunFolder) -> bool:
    """Whether no model was averaged yet, or the BatchNorm statistics of the average are not estimated yet."""
    return not load_state(run.checkpoint("last")).get("swa_measured")
