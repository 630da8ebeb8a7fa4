"""Builds what a training needs from its settings: images, networks, device."""

import platform
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from fastpeer.config import Config
from fastpeer.data.dataset import PreparedDataset, file_sha256
from fastpeer.data.host import HostSource
from fastpeer.data.resident import ResidentSource, open_source
from fastpeer.data.split import open_split
from fastpeer.data.stream import EvaluationStream, Source, TrainingStream, hold_out, spread
from fastpeer.errors import UserError
from fastpeer.methods import Method
from fastpeer.step.options import options_of
from fastpeer.step.precision import NumberFormat, number_format
from fastpeer.training.networks import build_networks, find_teachers, place_teacher, refuse_unused
from fastpeer.training.teachers import Teacher, check_accuracy
from fastpeer.versions import version_of


@dataclass(frozen=True)
class TrainingSetup:
    """The pieces that a trainer puts together."""

    method: Method
    networks: dict[str, nn.Module]
    """Those that are trained."""
    teachers: dict[str, tuple[Teacher, nn.Module]]
    """Those that are not, by their role in the method's table."""
    training: TrainingStream
    selection: EvaluationStream
    number_format: NumberFormat
    device: torch.device
    dataset: PreparedDataset
    initial: Mapping[str, tuple[Path, str]]
    """Files that the networks began from, with their SHA-256."""

    @property
    def classes(self) -> int:
        """How many the data set has."""
        return len(self.dataset.classes)

    @property
    def all_networks(self) -> dict[str, nn.Module]:
        """Trained ones and teachers."""
        return {**self.networks, **{role: network for role, (_, network) in self.teachers.items()}}


def set_up(
    config: Config,
    dataset: PreparedDataset,
    device: torch.device,
    initial: Mapping[str, Path | None],
) -> TrainingSetup:
    """Open the data and build the networks.

    Args:
        config: the settings.
        dataset: what to train on.
        device: where to compute.
        initial: files with initial weights, by network; the others start at random from the seed.

    Raises:
        UserError: data or weights do not fit.
    """
    numbers = number_format(config.precision)
    numbers.allow_tf32()
    # Shapes stay the same, so that cuDNN's search for its fastest algorithms is made once.
    torch.backends.cudnn.benchmark = True
    method = config.table
    refuse_unused(config, method, initial)
    dataset = dataset.seen_at(config.data.size)
    # What may be wrong with them shows before the images are opened, which takes longer.
    teachers = find_teachers(config, method)
    training, selection = _streams(config, dataset, device, numbers)
    classes = len(dataset.classes)
    networks = build_networks(config, method, classes, device, initial, dataset.size)
    taught = {one.role: (one, place_teacher(one, config, classes, dataset.size, device)) for one in teachers}
    for teacher, network in taught.values():
        check_accuracy(teacher, network, selection, classes)
    files = {name: (file.absolute(), file_sha256(file)) for name, file in initial.items() if file is not None}
    return TrainingSetup(method, networks, taught, training, selection, numbers, device, dataset, files)


def _streams(
    config: Config,
    dataset: PreparedDataset,
    device: torch.device,
    numbers: NumberFormat,
) -> tuple[TrainingStream, EvaluationStream]:
    read = partial(open_split, dataset, crop_scale=config.data.crop_scale)
    opened = partial(
        open_source, size=dataset.size, device=device, residency=config.data.residency,
        gather=options_of(config, device, max(dataset.size)).formulas().crop_and_flip,
    )  # fmt: skip
    source = opened(read("train", config.train.batch_size))
    used, held_out = np.arange(len(source.labels)), None
    if config.selection.split == "val":
        used, held_out = hold_out(source.labels, config.selection.fraction)
    training = TrainingStream(
        source, used, numbers.weights, config.seed, config.data.augment, config.data.shuffle,
        config.data.drop_last,
    )  # fmt: skip
    if training.steps_per_epoch == 0:
        raise UserError(
            f"{len(used)} training images make no batch of {config.train.batch_size} with data.drop_last:"
            " lower --train.batch_size"
        )
    evaluated_at_once = config.selection.batch_size or config.train.batch_size
    if held_out is None:
        source = opened(read("test", evaluated_at_once))
        held_out = np.arange(len(source.labels))
    else:
        source = _in_other_batches(source, evaluated_at_once)
    chosen = spread(held_out, config.selection.examples)
    return training, EvaluationStream(source, chosen, numbers.weights)


def _in_other_batches(source: Source, batch_size: int) -> Source:
    """Return the same images, not kept twice where they are kept."""
    if isinstance(source, ResidentSource):
        return replace(source, batch_size=batch_size)
    assert isinstance(source, HostSource)
    return HostSource(source.loader.in_batches_of(batch_size), source.device)


def describe(setup: TrainingSetup) -> dict[str, Any]:
    """Return what a run should remember of its surroundings beside the settings."""
    device = torch.cuda.get_device_name(setup.device) if setup.device.type == "cuda" else "cpu"
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
                "file": str(one.weights),
                "sha256": one.sha256,
                "network": one.network,
                "mean": list(one.mean),
                "std": list(one.std),
            }
            for role, (one, _) in setup.teachers.items()
        },
        "initial": {name: {"file": str(file), "sha256": sha} for name, (file, sha) in setup.initial.items()},
        "device": device,
        "versions": _versions(),
    }


def _versions() -> dict[str, str | None]:
    versions = {name: version_of(name) for name in ("fastpeer", "ffcv", "numpy", "triton")}
    own = {"python": platform.python_version(), "torch": torch.__version__, "cuda": torch.version.cuda}
    return {**own, **versions}
