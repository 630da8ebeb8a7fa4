"""A run's folder: the paths of its files, and how they are created, locked and read."""

import fcntl
import json
import logging
import os
import shutil
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fastpeer.config import Config
from fastpeer.config.recipes import load_recipe
from fastpeer.config.toml import dump_recipe
from fastpeer.errors import UserError
from fastpeer.files import read_text, unfinished, update_atomically, write_atomically
from fastpeer.links import checkpoint_folder

log = logging.getLogger(__name__)
PARTS = (
    "config.toml", "run.json", "metrics.jsonl", "metrics.jsonl.damaged", "metrics.csv", "loggers.json",
    "results.json", "verdicts", "checkpoints", "tensorboard", "wandb", "report",
)  # fmt: skip
"""Names in a run's folder. --force deletes a folder only if it contains nothing else."""


@dataclass(frozen=True)
class RunFolder:
    """The files of a run in the folder `path`."""

    path: Path

    @property
    def config_file(self) -> Path:
        """All settings, as a recipe for `fastpeer train`."""
        return self.path / "config.toml"

    @property
    def facts_file(self) -> Path:
        """What is no setting: data, teachers, versions; command, source and machine of each start."""
        return self.path / "run.json"

    @property
    def metrics_file(self) -> Path:
        """A line of JSON for each logging interval and each evaluated epoch."""
        return self.path / "metrics.jsonl"

    @property
    def csv_file(self) -> Path:
        """The same numbers as a table, if log.to holds csv."""
        return self.path / "metrics.csv"

    @property
    def loggers_file(self) -> Path:
        """The run's identity in Weights & Biases and MLflow, by which a resumed run continues there."""
        return self.path / "loggers.json"

    @property
    def results_file(self) -> Path:
        """The results of `fastpeer eval`."""
        return self.path / "results.json"

    @property
    def checkpoints(self) -> Path:
        """The folder with the checkpoints last, best and best-swa."""
        return self.path / "checkpoints"

    def checkpoint(self, name: str) -> Path:
        """Return the folder of the checkpoint `name`, which exists if there is one (`checkpoint_folder`)."""
        return checkpoint_folder(self.checkpoints / name)

    @property
    def exists(self) -> bool:
        """Whether the folder holds a run."""
        return self.config_file.is_file() and self.facts_file.is_file()

    @property
    def foreign_files(self) -> list[str]:
        """Names in the folder that are not part of a run, sorted."""
        # A kill leaves what was being written.
        known = {*PARTS, *(unfinished(self.path / part).name for part in PARTS)}
        return sorted(entry.name for entry in self.path.iterdir() if entry.name not in known)

    @property
    def has_checkpoint(self) -> bool:
        """Whether there is a complete checkpoint, whatever the links in `checkpoints` stand for."""
        places = ("*/state.pt", "*/student.safetensors", ".store/[!.]*/state.pt")
        return any(any(self.checkpoints.glob(place)) for place in places)

    @property
    def holds_work(self) -> bool:
        """Whether something would be lost with the folder: a run that was begun and never saved has none."""
        logged = self.metrics_file.is_file() and self.metrics_file.stat().st_size > 0
        return self.has_checkpoint or logged or self.results_file.exists()

    @property
    def recipe_name(self) -> str:
        """Name of the recipe; of older runs, which did not record it, the folder's name."""
        try:
            return str(self.read_facts().get("recipe", self.path.name))
        except UserError:
            return self.path.name

    def last_written(self) -> float:
        """Return when the run was written to last, in seconds."""
        file = self.metrics_file if self.metrics_file.exists() else self.facts_file
        return file.stat().st_mtime

    def refuse_unless_free(self, force: bool) -> None:
        """Make sure that a new run may use this folder.

        Args:
            force: whether an existing run may be deleted.

        Raises:
            UserError: the folder holds a run, or anything that is not part of a run.
        """
        if self.holds_work and not force:
            raise UserError(
                f"{self.path} already holds a run: --resume continues it, --force deletes it,"
                " another --out keeps it"
            )
        if self.path.exists() and not self.path.is_dir():
            raise UserError(f"{self.path} is a file: choose another --out")
        if self.path.exists() and self.foreign_files:
            raise UserError(
                f"{self.path} holds {self.foreign_files[0]}, which is not part of a run: choose another --out"
            )

    def create(self, config: Config, facts: Mapping[str, Any], force: bool) -> None:
        """Begin a new run in the folder; what a run has left there, with `force` or without work, is deleted.

        Args:
            config: the settings, written to config.toml.
            facts: written to run.json.
            force: whether an existing run may be deleted.

        Raises:
            UserError: see `refuse_unless_free`; or the folder cannot be written.
        """
        self.refuse_unless_free(force)
        try:
            self._clear()
            self.checkpoints.mkdir(parents=True)
        except OSError as error:
            raise UserError(f"{self.path}: cannot be written ({error.strerror})") from None
        write_atomically(self.facts_file, _facts_text(facts))
        self.write_config(config)

    def _clear(self) -> None:
        # The folder itself stays: it is what is locked.
        for entry in self.path.iterdir() if self.path.exists() else ():
            if entry.is_dir() and not entry.is_symlink():
                shutil.rmtree(entry)
            else:
                entry.unlink()

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Lock the folder, which is made if it is missing, against other processes that would train in it.

        Raises:
            UserError: another process holds the lock, or the folder cannot be made.
        """
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            # A lock of the kernel's, not a lock file: it is released when the process ends, however it ends.
            folder = os.open(self.path, os.O_RDONLY)
        except OSError as error:
            raise UserError(f"{self.path}: cannot be written ({error.strerror})") from None
        try:
            self._lock(folder)
            yield
        finally:
            os.close(folder)

    def is_locked(self) -> bool:
        """Whether another process trains in the folder; False where that cannot be told."""
        folder = os.open(self.path, os.O_RDONLY)
        try:
            fcntl.flock(folder, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
        except OSError:
            return False
        finally:
            os.close(folder)
        return False

    def _lock(self, folder: int) -> None:
        try:
            try:
                fcntl.flock(folder, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                # Another process may only have looked whether it is locked, which takes microseconds.
                time.sleep(0.1)
                fcntl.flock(folder, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise UserError(
                f"{self.path} is being trained by another process: wait, or stop that one"
            ) from None
        except OSError as error:
            # Network drives and mounted buckets may have no locks, or none for folders.
            reason = error.strerror
            log.warning("%s cannot be locked (%s): let no other process train in it", self.path, reason)

    def write_config(self, config: Config) -> None:
        """Write config.toml.

        Raises:
            UserError: it cannot be written; the previous file is kept.
        """
        write_atomically(self.config_file, dump_recipe(config))

    def read_config(self) -> Config:
        """Return the settings in config.toml.

        Raises:
            UserError: there is no run, the file is not a valid recipe, or the run has parts elsewhere.
        """
        if not self.exists:
            raise UserError(f"no run in {self.path}: config.toml is missing{one_of_its_runs(self.path)}")
        self._refuse_parts_elsewhere()
        return load_recipe(str(self.config_file))

    def _refuse_parts_elsewhere(self) -> None:
        """Refuse a folder, such as a stranger's, with a link that leads elsewhere, or with a pipe or device.

        Other people's files would be overwritten through the one, and reading would never end in the other.
        """
        home = os.path.join(os.path.realpath(self.path), "")
        for path in self._parts():
            if path.is_symlink() and not os.path.realpath(path).startswith(home):
                raise UserError(
                    f"{path} leads out of the run's folder: put what it stands for in its place, or link the"
                    " whole folder"
                )
            if path.exists() and not (path.is_file() or path.is_dir()):
                raise UserError(f"{path} must be a file or a folder, got a pipe or device: remove it")

    def _parts(self) -> Iterator[Path]:
        """Yield what may be written or read in the folder, whatever it is."""
        for part in PARTS:
            yield self.path / part
            yield unfinished(self.path / part)
        for folder in (self.checkpoints, self.path / "verdicts"):
            yield from folder.rglob("*")

    def update_facts(self, change: Callable[[dict[str, Any]], dict[str, Any]]) -> None:
        """Replace the facts in run.json by others that `change` makes of them.

        Raises:
            UserError: the file is damaged, or cannot be written; the previous one is kept.
        """
        update_atomically(self.facts_file, lambda: _facts_text(change(self.read_facts())))

    def read_facts(self) -> dict[str, Any]:
        """Return the facts in run.json.

        Raises:
            UserError: the file is damaged or lacks the data set's facts.
        """
        try:
            facts: dict[str, Any] = json.loads(read_text(self.facts_file))
            if {"folder", "train_sha256"} <= facts["data"].keys():
                return facts
        except (OSError, ValueError, KeyError, TypeError, AttributeError):
            pass
        raise UserError(f"{self.facts_file}: damaged or not written by fastpeer train")


def _facts_text(facts: Mapping[str, Any]) -> str:
    return json.dumps(facts, indent=1) + "\n"


def runs_in(folder: Path) -> list[RunFolder]:
    """Return the runs in a folder of runs, sorted by name; those in folders within it are not looked for."""
    runs = [RunFolder(path) for path in sorted(folder.glob("*/"))]
    return [run for run in runs if run.exists]


def one_of_its_runs(folder: Path) -> str:
    """End the message of what wants one run and was given a folder of runs; "" where it is none."""
    newest = max(runs_in(folder), key=RunFolder.last_written, default=None)
    return f"; it is a folder of runs: name one, such as {newest.path}" if newest else ""


def newest_run(folder: Path = Path("runs")) -> RunFolder:
    """Return the run in `folder` that was written to last.

    Raises:
        UserError: there is no run with a checkpoint.
    """
    runs = [run for run in runs_in(folder) if run.checkpoint("last").exists()]
    if not runs:
        raise UserError(f"no run in {folder}/: name one, or train one with fastpeer train")
    return max(runs, key=RunFolder.last_written)


def newest_run_of(recipe: str, folder: Path = Path("runs")) -> RunFolder | None:
    """Return the run of a recipe in `folder` that was written to last; None if there is none."""
    runs = [run for run in runs_in(folder) if run.recipe_name == recipe]
    return max(runs, key=RunFolder.last_written, default=None)


def enclosing_run(path: Path) -> RunFolder | None:
    """Return the run that contains a file or folder (or is it); None if there is none."""
    path = path.absolute()
    return next((RunFolder(folder) for folder in (path, *path.parents) if RunFolder(folder).exists), None)


def network_name(config: Config, weights: Path) -> str:
    """Return the name of the network in a run's weight file: the peer for peer.*, else the student."""
    return config.model.peer if weights.stem == "peer" else config.model.student
