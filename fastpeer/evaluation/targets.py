"""Finds the weights that an evaluation is about, and what is known of them."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from fastpeer.checkpoint import load_state
from fastpeer.config import Config
from fastpeer.data.dataset import file_sha256
from fastpeer.errors import UserError
from fastpeer.run_folder import RunFolder, enclosing_run
from fastpeer.suggestions import nearest

CHECKPOINTS = {
    "last": "last/student.safetensors",
    "swa": "last/swa.safetensors",
    "best": "best/student.safetensors",
    "best-swa": "best-swa/student.safetensors",
}


@dataclass(frozen=True)
class Target:
    """A student's weights.

    Attributes:
        label: what tables call it.
        weights: the file.
        run: the run it belongs to, if any.
        config: that run's settings.
    """

    label: str
    weights: Path
    run: RunFolder | None
    config: Config | None

    @property
    def results_file(self) -> Path:
        """Where results are kept: in the run, or beside weights that belong to none."""
        return self.run.results_file if self.run else Path(f"{self.weights}.results.json")

    @cached_property
    def sha256(self) -> str:
        """Checksum of the weights."""
        return file_sha256(self.weights)


def find_targets(paths: Sequence[Path], checkpoints: str) -> list[Target]:
    """Return what the paths on the command line stand for, in their order.

    Args:
        paths: run folders, checkpoints' folders or weight files.
        checkpoints: comma-separated names out of `CHECKPOINTS`, or all; for a run folder.

    Raises:
        UserError: nothing to evaluate lies there.
    """
    names = [path.name for path in paths]
    targets: list[Target] = []
    for path in paths:
        # Short names, where they tell the runs apart.
        name = path.name if path.name and names.count(path.name) == 1 else str(path)
        targets += _of_path(path, name, checkpoints)
    return targets


def _of_path(path: Path, name: str, checkpoints: str) -> list[Target]:
    run = RunFolder(path)
    if run.exists:
        return list(_of_run(run, name, checkpoints))
    weights = path / "student.safetensors" if path.is_dir() else path
    if not weights.is_file():
        raise UserError(f"{path}: neither a run folder nor a file with weights")
    owner = enclosing_run(weights)
    return [Target(str(path), weights, owner, owner.read_config() if owner else None)]


def _of_run(run: RunFolder, label: str, checkpoints: str) -> Iterator[Target]:
    config = run.read_config()
    asked = [name.strip() for name in checkpoints.split(",") if name.strip()]
    every = not asked or "all" in asked
    names = list(CHECKPOINTS) if every else asked
    found = 0
    for name in names:
        if name not in CHECKPOINTS:
            raise UserError(f"no checkpoint is called {name}: did you mean {nearest(name, CHECKPOINTS)}?")
        weights = run.checkpoints / CHECKPOINTS[name]
        if weights.is_file() and not (name == "swa" and _average_is_unfinished(run)):
            found += 1
            yield Target(f"{label} {name}", weights, run, config)
        elif not every:
            raise UserError(f"{run.path} holds no checkpoint {name}")
    if not found:
        go_on = f"go on with fastpeer train --resume --out {run.path}, or begin anew with --force"
        raise UserError(f"{run.path} holds no checkpoint yet: {go_on}")


def _average_is_unfinished(run: RunFolder) -> bool:
    """Tell whether there is no average yet, or none whose BatchNorm statistics were measured."""
    return not load_state(run.checkpoints / "last").get("swa_measured")
