"""Finds the weights to evaluate, and the runs they belong to."""

import logging
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fastpeer.checkpoint import load_state, saved_settings
from fastpeer.config import Config
from fastpeer.config.differences import NETWORKS, differences
from fastpeer.errors import UserError
from fastpeer.evaluation.results import verdicts_folder
from fastpeer.files import file_sha256
from fastpeer.links import student_weights
from fastpeer.manifest import check_files, is_in_checkpoint
from fastpeer.models.names import class_path
from fastpeer.models.pixel_range import Normalization
from fastpeer.models.weight_facts import check_safetensors
from fastpeer.models.weight_files import read_weights
from fastpeer.models.weights import recorded_network, recorded_normalization
from fastpeer.own_code import refuse_untrusted
from fastpeer.run_folder import RunFolder, enclosing_run, network_name, runs_in
from fastpeer.suggestions import did_you_mean

log = logging.getLogger(__name__)

CHECKPOINTS = {
    "last": ("last", "student.safetensors"),
    "swa": ("last", "swa.safetensors"),
    "best": ("best", "student.safetensors"),
    "best-swa": ("best-swa", "student.safetensors"),
}
"""By the names on the command line: a run's checkpoint, and the weight file in it."""


_OTHERS = "restore it from a copy, or name others with --checkpoints, or another run"


@dataclass(frozen=True)
class Target:
    """A student's weights.

    Attributes:
        label: its name in tables.
        weights: the weight file.
        run: the run it belongs to, or None.
        config: the run's settings, or None.
        checkpoint: which of a run's `CHECKPOINTS` it is; empty: a file or folder that was named itself.
    """

    label: str
    weights: Path
    run: RunFolder | None
    config: Config | None
    checkpoint: str = ""

    @property
    def results_file(self) -> Path:
        """The file for its results: in the run, or beside weights that belong to none."""
        return self.run.results_file if self.run else Path(f"{self.weights}.results.json")

    @property
    def verdicts_folder(self) -> Path:
        """The folder for what each image fell to: in the run, or beside weights that belong to none."""
        return verdicts_folder(self.results_file)

    @property
    def sha256(self) -> str:
        """SHA-256 of the weight file as it is now: a run that trains on meanwhile replaces it."""
        return file_sha256(self.weights)

    def network(self, flag: str, weights_key: str = "") -> str:
        """Return the name of its network, by its run's settings, else by what its file records.

        Args:
            flag: what a message tells to pass.
            weights_key: which weights of the file are meant.

        Raises:
            UserError: neither names one, or the file holds no weights.
        """
        name = network_name(self.config, self.weights) if self.config else ""
        name = name or recorded_network(self.weights, flag)
        if not name:
            raise self.without_run(f"name its network with {flag}", weights_key)
        return name

    def without_run(self, advice: str, weights_key: str) -> UserError:
        """Return what to say of weights that belong to no run, and that something must be told of.

        Raises:
            UserError: the file holds no weights: then nothing that is told would help.
        """
        read_weights(self.weights, weights_key)
        return UserError(f"{self.weights} belongs to no run: {advice}")

    def refuse_untrusted(self) -> None:
        """Raise an error that names the run, where its settings name a class that nobody asked to import."""
        name = network_name(self.config, self.weights) if self.config else ""
        if class_path(name):
            refuse_untrusted(f"{self.run.path}: network" if self.run else "network", name)

    def normalization(self, network: str, weights_key: str = "") -> Normalization:
        """Return mean and std that its run or file records; empty: none."""
        if self.config is not None:
            return self.config.model.mean, self.config.model.std
        return recorded_normalization(self.weights, network, weights_key) or ((), ())


def find_targets(paths: Sequence[Path], checkpoints: str, force_settings: bool = False) -> list[Target]:
    """Return the weights that paths on the command line stand for, in their order.

    Args:
        paths: run folders, folders of runs, checkpoint folders or weight files.
        checkpoints: for run folders: comma-separated names of `CHECKPOINTS`; all or empty: all that exist.
        force_settings: take weights although their run's settings were edited.

    Raises:
        UserError: there is nothing to evaluate at a path, or a checkpoint is missing or damaged, or the
            network's settings are not those that it was trained with.
    """
    compared: set[Path] = set()
    runs = (found for path in paths for found in _runs_at(path, checkpoints, compared) or [path])
    paths = list(dict.fromkeys(runs))
    names = [path.name for path in paths]
    targets: list[Target] = []
    for path in paths:
        # The folder's name alone, where it is unique.
        name = path.name if path.name and names.count(path.name) == 1 else str(path)
        targets += _targets_at(path, name, checkpoints)
    for target in targets:
        _check(target, force_settings, target.weights in compared)
    return targets


def _runs_at(path: Path, checkpoints: str, compared: set[Path]) -> list[Path]:
    """Return the runs in a folder of runs that can be evaluated; the others are logged.

    Weights that agree with their manifest are added to `compared`.

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
                if check_files(target.weights.parent, [target.weights.name]):
                    compared.add(target.weights)
                target.refuse_untrusted()
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
    if weights is None and (path / "dataset.json").is_file():
        raise UserError(f"{path} is a prepared data set: name a run or a file with weights, and it by --data")
    if weights is None:
        raise UserError(f"{path}: neither a run folder nor a file with weights")
    owner = enclosing_run(weights)
    return [Target(str(path), weights, owner, owner.read_config() if owner else None)]


def _targets_of_run(run: RunFolder, label: str, checkpoints: str) -> Iterator[Target]:
    config = run.read_config()
    requested = [name.strip() for name in checkpoints.split(",") if name.strip()]
    use_all = not requested or "all" in requested
    names = list(CHECKPOINTS) if use_all else requested
    count, state = 0, _state_of_last(run)
    expected = _expected(run, state)
    for name in names:
        check_checkpoint_name(name)
        checkpoint, file = CHECKPOINTS[name]
        weights = run.checkpoint(checkpoint) / file
        # Without a state, whether the average is finished is an error to ask.
        if weights.is_file() and (name != "swa" or (state or load_state(weights.parent)).get("swa_measured")):
            count += 1
            yield Target(f"{label} {name}", weights, run, config, name)
        elif name in expected:
            raise UserError(f"{weights} is missing, though the run had saved it; {_OTHERS}")
        elif not use_all:
            raise UserError(f"{run.path} holds no checkpoint {name}")
    if not count:
        raise UserError(
            f"{run.path} holds no checkpoint yet: train on with fastpeer train --resume --out {run.path}"
        )


def check_checkpoint_name(name: str) -> None:
    """Raise a `UserError` that names the nearest, unless it is one of `CHECKPOINTS`."""
    if name not in CHECKPOINTS:
        raise UserError(f"unknown checkpoint {name}; {did_you_mean(name, CHECKPOINTS)}")


def _state_of_last(run: RunFolder) -> Mapping[str, Any]:
    """Return the state of a run's last checkpoint; empty without one.

    Its `swa_measured` is false as long as no model was averaged, or the BatchNorm statistics of the average
    are not estimated yet.
    """
    last = run.checkpoint("last")
    return load_state(last) if (last / "state.pt").is_file() else {}


def _expected(run: RunFolder, state: Mapping[str, Any]) -> set[str]:
    """Return which of `CHECKPOINTS` a run has saved, as the state of its last one tells."""
    if not state:
        return {"last"} if run.has_checkpoint else set()
    return set(state.get("summary", ()))


def _check(target: Target, force_settings: bool, compared: bool) -> None:
    """Refuse weights that are damaged, or whose run now says other things of the network.

    They are not compared with their manifest a second time.

    Raises:
        UserError: what is wrong.
    """
    folder = target.weights.parent
    if target.run is None and not is_in_checkpoint(target.weights):
        return
    try:
        checked = compared or check_files(folder, [target.weights.name])
    except UserError as error:
        raise UserError(f"{error}; {_OTHERS}") from None
    if target.config is None:
        return
    if not checked:
        log.warning("note: %s has no checksum, as an older fastpeer wrote it", target.weights)
    trained = saved_settings(folder)
    edited = {} if trained is None else differences(target.config, trained)
    changes = [f"{name} was {old}, now {new}" for name, (new, old) in edited.items() if name in NETWORKS]
    if changes and not force_settings:
        raise UserError(
            f"{target.run and target.run.config_file} is not what {target.label} was trained with:"
            f" {', '.join(changes)}; set it back, or go on with it by --force-settings"
        )
