"""A run is a folder; this says what lies where in it."""

import fcntl
import json
import os
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fastpeer.config import Config
from fastpeer.config.recipes import load_recipe
from fastpeer.config.toml import dump_recipe
from fastpeer.errors import UserError

PARTS = ("config.toml", "run.json", "metrics.jsonl", "results.json", "checkpoints", "tensorboard")
"""Names in a run's folder: nothing else is ever deleted."""


@dataclass(frozen=True)
class RunFolder:
    """The files of a run below `path`."""

    path: Path

    @property
    def config_file(self) -> Path:
        """All settings, as a recipe that `fastpeer train` takes."""
        return self.path / "config.toml"

    @property
    def facts_file(self) -> Path:
        """What the settings do not say: the data set's folder and checksums, the device, versions."""
        return self.path / "run.json"

    @property
    def metrics_file(self) -> Path:
        """A line of JSON for each logging interval and each epoch."""
        return self.path / "metrics.jsonl"

    @property
    def results_file(self) -> Path:
        """What `fastpeer eval` found."""
        return self.path / "results.json"

    @property
    def checkpoints(self) -> Path:
        """The folder with last, best and best-swa."""
        return self.path / "checkpoints"

    @property
    def exists(self) -> bool:
        """Whether a run was begun here."""
        return self.config_file.is_file() and self.facts_file.is_file()

    @property
    def foreign_files(self) -> list[str]:
        """Names of what lies here and is no part of a run."""
        return sorted(entry.name for entry in self.path.iterdir() if entry.name not in PARTS)

    def refuse_unless_free(self, force: bool) -> None:
        """Make sure that a run may begin here.

        Raises:
            UserError: a run or anything else lies here.
        """
        if self.exists and not force:
            raise UserError(
                f"{self.path} already holds a run: --resume goes on with it, --force deletes it,"
                " another --out leaves it alone"
            )
        if self.path.exists() and not self.path.is_dir():
            raise UserError(f"{self.path} is a file: choose another --out")
        if self.path.exists() and self.foreign_files:
            raise UserError(
                f"{self.path} holds {self.foreign_files[0]}, no part of a run: choose another --out"
            )

    def create(self, config: Config, facts: Mapping[str, Any], force: bool) -> None:
        """Begin a run here, in place of a former one with `force`.

        Raises:
            UserError: something lies here, or the folder cannot be made.
        """
        self.refuse_unless_free(force)
        try:
            if self.path.exists():
                with self.locked():
                    shutil.rmtree(self.path)
            self.checkpoints.mkdir(parents=True)
            self.facts_file.write_text(json.dumps(facts, indent=1) + "\n", "utf-8")
            self.write_config(config)
        except OSError as error:
            raise UserError(f"{self.path}: cannot be written ({error.strerror})") from None

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Keep other processes from training here; the lock goes with the process, however that ends.

        Raises:
            UserError: another process holds it.
        """
        folder = os.open(self.path, os.O_RDONLY)
        try:
            fcntl.flock(folder, fcntl.LOCK_EX | fcntl.LOCK_NB)
            yield
        except BlockingIOError:
            raise UserError(
                f"{self.path} is being trained by another process: wait, or stop that one"
            ) from None
        finally:
            os.close(folder)

    def write_config(self, config: Config) -> None:
        """Write the settings.

        Raises:
            UserError: they cannot be written; the former ones are kept.
        """
        write_text(self.config_file, dump_recipe(config))

    def read_config(self) -> Config:
        """Return the settings that the run was started with."""
        if not self.exists:
            raise UserError(f"no run in {self.path}: config.toml is missing")
        return load_recipe(str(self.config_file))

    def read_facts(self) -> dict[str, Any]:
        """Return what `run.json` holds."""
        try:
            facts: dict[str, Any] = json.loads(self.facts_file.read_text("utf-8"))
            if {"folder", "train_sha256"} <= facts["data"].keys():
                return facts
        except (OSError, ValueError, KeyError, TypeError, AttributeError):
            pass
        raise UserError(f"{self.facts_file}: damaged or not written by fastpeer train")


def newest_run(folder: Path = Path("runs")) -> RunFolder:
    """Return the run below `folder` that was written to last."""
    runs = [RunFolder(path) for path in folder.glob("*/") if (path / "checkpoints" / "last").exists()]
    if not runs:
        raise UserError(f"no run in {folder}/: name one, or train one with fastpeer train")
    return max(runs, key=lambda run: run.metrics_file.stat().st_mtime if run.metrics_file.exists() else 0)


def enclosing_run(path: Path) -> RunFolder | None:
    """Return the run that a file or folder lies in, or that a folder is; None if there is none."""
    path = path.absolute()
    return next((RunFolder(folder) for folder in (path, *path.parents) if RunFolder(folder).exists), None)


def network_name(config: Config, weights: Path) -> str:
    """Name the network whose weights a run's file holds, by the file's name."""
    return config.model.peer if weights.stem == "peer" else config.model.student


def write_text(file: Path, text: str) -> None:
    """Write a file in one instant: whoever reads it finds the former text or the new one.

    Raises:
        UserError: it cannot be written; the former one is kept.
    """
    beside = file.with_name(f".{file.name}.new")
    try:
        beside.write_text(text, "utf-8")
        os.replace(beside, file)
    except OSError as error:
        beside.unlink(missing_ok=True)
        raise UserError(f"{file}: cannot be written ({error.strerror})") from None
