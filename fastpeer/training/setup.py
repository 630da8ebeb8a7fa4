"""Builds the data streams and networks of a training from its settings."""

import logging
import platform
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from fastpeer.config import AttackConfig, Config, check_fits, doubts, teacher_words
from fastpeer.data.dataset import PreparedDataset
from fastpeer.data.host import HostSource
from fastpeer.data.resident import ResidentSource, open_source
from fastpeer.data.split import open_split
from fastpeer.data.stream import EvaluationStream, Source, TrainingStream, hold_out, spread
from fastpeer.errors import UserError
from fastpeer.evaluation.hidden_gradients import hidden_gradients
from fastpeer.manifest import checked_sha256
from fastpeer.methods import Method
from fastpeer.step.options import options_of
from fastpeer.step.precision import NumberFormat, number_format
from fastpeer.training.networks import (
    build_initial_networks,
    find_teachers,
    place_teacher,
    refuse_unused_weights,
)
from fastpeer.training.teacher_accuracy import TeacherAccuracy, check_accuracy
from fastpeer.training.teachers import Teacher
from fastpeer.versions import version_of

log = logging.getLogger(__name__)
OpenSplit = Callable[[str, int], Source]
"""Opens a split (train or test) with a batch size."""


@dataclass(frozen=True)
class TrainingSetup:
    """What a `Trainer` is built from."""

    method: Method
    networks: dict[str, nn.Module]
    """The trained networks, by name: student, peer."""
    teachers: dict[str, tuple[Teacher, nn.Module]]
    """The frozen networks, by their role in the method's table."""
    teacher_accuracies: Mapping[str, TeacherAccuracy]
    """What was measured of them, by role."""
    training: TrainingStream
    selection: EvaluationStream
    number_format: NumberFormat
    device: torch.device
    dataset: PreparedDataset
    initial: Mapping[str, tuple[Path, str]]
    """Files of the initial weights, with their SHA-256, by network."""
    left_out: Mapping[str, list[str]]
    """Names of the tensors that were not taken from those files."""
    warnings: Mapping[str, list[str]]
    """Why attacks on a network may fail, for those that hide their gradient (`hidden_gradients`)."""

    @property
    def classes(self) -> int:
        """Number of classes of the data set."""
        return len(self.dataset.classes)

    @property
    def all_networks(self) -> dict[str, nn.Module]:
        """Trained networks and teachers, by name."""
        return {**self.networks, **{role: network for role, (_, network) in self.teachers.items()}}


def set_up(
    config: Config,
    dataset: PreparedDataset,
    device: torch.device,
    initial: Mapping[str, Path | None],
    weights_key: str = "",
    reset_head: bool = False,
    announce: Callable[[str], None] = lambda what: None,
) -> TrainingSetup:
    """Open the data and build the networks.

    It also sets the process's TF32 and cuDNN switches.

    Args:
        config: the settings.
        dataset: the prepared data set to train on.
        device: the device that computes.
        initial: files with initial weights, by network; the others are initialised from the seed.
        weights_key: which set of weights in those files; empty: the usual one.
        reset_head: whether the classification layer begins at random in spite of those files.
        announce: is told what is done from now on.

    Raises:
        UserError: data or weights do not fit.
    """
    numbers = _set_switches(config)
    method = config.table
    refuse_unused_weights(config, method, initial)
    dataset = dataset.seen_at(config.data.size)
    _check_attack(config.attack, dataset)
    # Before the images are opened, which takes longer: a missing teacher is reported at once.
    teachers = find_teachers(config, method)
    announce("opening the images")
    training, selection = _open_streams(config, dataset, device, numbers)
    classes = len(dataset.classes)
    announce("building the networks")
    networks, left_out = build_initial_networks(
        config, method, classes, device, initial, dataset.size, weights_key, reset_head
    )
    placed = {
        teacher.role: (teacher, place_teacher(teacher, config, classes, dataset.size, device))
        for teacher in teachers
    }
    accuracies = {}
    for role, (teacher, network) in placed.items():
        announce(f"checking the {teacher.title}")
        accuracies[role] = check_accuracy(teacher, network, selection, classes, config.attack, config.seed)
    files = {
        name: (file.absolute(), checked_sha256(file)) for name, file in initial.items() if file is not None
    }
    frozen = {role: network for role, (_, network) in placed.items()}
    warnings = _hidden_gradients({**networks, **frozen}, selection)
    return TrainingSetup(
        method, networks, placed, accuracies, training, selection, numbers, device, dataset, files, left_out,
        warnings,
    )  # fmt: skip


def _set_switches(config: Config) -> NumberFormat:
    """Set the process's TF32 and cuDNN switches, and return how numbers are computed."""
    numbers = number_format(config.precision)
    numbers.allow_tf32()
    # cuDNN's search for the fastest algorithms pays: it is made once per shape, and batches have one size.
    # But another process may find other ones, which round differently.
    torch.backends.cudnn.benchmark = not config.train.deterministic
    torch.backends.cudnn.deterministic = config.train.deterministic
    return numbers


def _check_attack(attack: AttackConfig, dataset: PreparedDataset) -> None:
    check_fits(attack.norm, attack.epsilon, dataset.size, "--attack.epsilon")
    for doubt in doubts(attack.norm, attack.epsilon, attack.step_size, attack.steps):
        log.warning(doubt)


def _hidden_gradients(networks: Mapping[str, nn.Module], stream: EvaluationStream) -> dict[str, list[str]]:
    """Return and log why attacks may fail, for the networks that they may fail on."""
    found = {name: hidden_gradients(network, stream) for name, network in networks.items()}
    for name, reasons in found.items():
        for reason in reasons:
            log.warning("the %s: %s", teacher_words(name), reason)
    return {name: reasons for name, reasons in found.items() if reasons}


def _open_streams(
    config: Config, dataset: PreparedDataset, device: torch.device, numbers: NumberFormat
) -> tuple[TrainingStream, EvaluationStream]:
    gather = options_of(config, device, max(dataset.size)).formulas().crop_and_flip

    def open_images(split: str, batch_size: int) -> Source:
        loader = open_split(dataset, split, batch_size, config.data.crop_scale, config.data.reader)
        return open_source(loader, dataset.size, device, config.data.residency, gather)

    source = open_images("train", config.train.batch_size)
    used, held_out = np.arange(len(source.labels)), None
    if config.selection.split == "val":
        used, held_out = hold_out(source.labels, config.selection.fraction)
    training = _training_stream(source, used, config, numbers.weights)
    return training, _selection_stream(source, held_out, config, numbers.weights, open_images)


def _training_stream(source: Source, used: np.ndarray, config: Config, dtype: torch.dtype) -> TrainingStream:
    data = config.data
    stream = TrainingStream(source, used, dtype, config.seed, data.augment, data.shuffle, data.drop_last)
    if stream.steps_per_epoch == 0:
        raise UserError(
            f"--train.batch_size must be at most the {len(used)} training images with data.drop_last,"
            f" got {config.train.batch_size}"
        )
    return stream


def _selection_stream(
    training: Source, held_out: np.ndarray | None, config: Config, dtype: torch.dtype, open_images: OpenSplit
) -> EvaluationStream:
    """Return the images that select the best epoch: held-out training images, or the test split."""
    batch_size = config.selection.batch_size or config.train.batch_size
    if held_out is None:
        source = open_images("test", batch_size)
        held_out = np.arange(len(source.labels))
    else:
        source = _with_batch_size(training, batch_size)
    return EvaluationStream(source, spread(held_out, config.selection.examples), dtype)


def _with_batch_size(source: Source, batch_size: int) -> Source:
    """Return a source of the same images; those kept on the device are shared, not copied."""
    if isinstance(source, ResidentSource):
        return replace(source, batch_size=batch_size)
    assert isinstance(source, HostSource)
    return HostSource(source.loader.with_batch_size(batch_size), source.device)


def device_name(device: torch.device) -> str:
    """Return cpu, or the name of the GPU."""
    return torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu"


def describe(setup: TrainingSetup) -> dict[str, Any]:
    """Return the facts for run.json that are not in the settings: data, weight files, device, versions."""
    return {
        "data": {
            "folder": str(setup.dataset.folder.absolute()),
            "name": setup.dataset.name,
            "classes": len(setup.dataset.classes),
            "size": list(setup.dataset.size),
            "train_sha256": setup.dataset.splits["train"]["sha256"],
            "test_sha256": setup.dataset.splits["test"]["sha256"],
        },
        "teachers": {
            role: {
                "file": str(teacher.weights),
                "sha256": teacher.sha256,
                "network": teacher.network,
                "mean": list(teacher.mean),
                "std": list(teacher.std),
                "accuracy": setup.teacher_accuracies[role].facts(),
            }
            for role, (teacher, _) in setup.teachers.items()
        },
        "initial": {
            name: {"file": str(file), "sha256": sha, "left_out": setup.left_out[name]}
            for name, (file, sha) in setup.initial.items()
        },
        "warnings": dict(setup.warnings),
        "device": device_name(setup.device),
        # Of what is computed on a CPU, rounding depends on it.
        "threads": torch.get_num_threads() if setup.device.type == "cpu" else None,
        "versions": _versions(),
    }


def _versions() -> dict[str, str | None]:
    versions = {name: version_of(name) for name in ("fastpeer", "ffcv", "numpy", "triton")}
    own = {"python": platform.python_version(), "torch": torch.__version__, "cuda": torch.version.cuda}
    return {**own, **versions}
