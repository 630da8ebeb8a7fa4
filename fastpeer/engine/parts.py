"""Builds what a training needs from its settings: images, networks, device."""

import platform
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import partial
from importlib import metadata
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np
import torch
from torch import nn

from fastpeer.config import Config
from fastpeer.data.beton import BetonLoader
from fastpeer.data.counter import counter_key
from fastpeer.data.dataset import PreparedDataset, file_sha256
from fastpeer.data.host import HostSource
from fastpeer.data.resident import ResidentSource, open_source
from fastpeer.data.stream import EvaluationStream, Source, TrainingStream, hold_out, spread
from fastpeer.engine.plan import make_plan
from fastpeer.engine.precision import NumberFormat, keep_pixels_exact, number_format
from fastpeer.errors import UserError
from fastpeer.methods import Method, build_method
from fastpeer.models import build_model
from fastpeer.models.weights import load_weights


@dataclass(frozen=True)
class Parts:
    """The pieces that a trainer puts together."""

    method: Method
    networks: dict[str, nn.Module]
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


def build_parts(
    config: Config,
    dataset: PreparedDataset,
    device: torch.device,
    initial: Mapping[str, Path | None],
    say: Callable[[str], None] = print,
) -> Parts:
    """Open the data and build the networks.

    Args:
        config: the settings.
        dataset: what to train on.
        device: where to compute.
        initial: files with initial weights, by network; the others start at random from the seed.
        say: takes a line if the images cannot be kept on the device.

    Raises:
        UserError: data or weights do not fit.
    """
    numbers = number_format(config.precision)
    numbers.allow_tf32()
    # Shapes stay the same, so that cuDNN's search for its fastest algorithms is made once.
    torch.backends.cudnn.benchmark = True
    method = build_method(config)
    unused = [name for name, file in initial.items() if file is not None and name not in method.trained]
    if unused:
        raise UserError(f"--init-{unused[0]}: the method {config.method} has no {unused[0]}")
    training, selection = _streams(config, dataset, device, numbers, say)
    networks = build_networks(config, method, len(dataset.classes), device, initial)
    files = {name: (file.absolute(), file_sha256(file)) for name, file in initial.items() if file is not None}
    return Parts(method, networks, training, selection, numbers, device, dataset, files)


def build_networks(
    config: Config,
    method: Method,
    classes: int,
    device: torch.device,
    initial: Mapping[str, Path | None] = MappingProxyType({}),
) -> dict[str, nn.Module]:
    """Build the networks that a method trains, from the seed or from files, ready for the step.

    Raises:
        UserError: weights do not fit.
    """
    numbers = number_format(config.precision)
    networks: dict[str, nn.Module] = {}
    for name in method.trained:
        network = _network(config, name, initial.get(name), classes)
        networks[name] = placed(network, device, numbers.weights)
        if numbers.autocast is not None:
            keep_pixels_exact(networks[name])
    return networks


def placed(network: nn.Module, device: torch.device, dtype: torch.dtype) -> nn.Module:
    """Move a network to where and as what it computes, channels-last."""
    # torch's annotations do not know the memory_format of Module.to.
    return network.to(device, dtype).to(memory_format=torch.channels_last)  # type: ignore[call-overload,no-any-return]


def _network(config: Config, name: str, weights: Path | None, classes: int) -> nn.Module:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(counter_key(config.seed, f"initial {name}") >> 1)
        network = build_model(getattr(config.model, name), classes)
    if weights is not None:
        # In double, so that weights of any precision arrive as they are.
        network.double()
        load_weights(network, weights)
    return network


def _streams(
    config: Config,
    dataset: PreparedDataset,
    device: torch.device,
    numbers: NumberFormat,
    say: Callable[[str], None],
) -> tuple[TrainingStream, EvaluationStream]:
    opened = partial(
        open_source, size=dataset.size, device=device, residency=config.data.residency,
        # Of the step's own plan, which says there what cannot be had.
        gather=make_plan(config.engine, device, config.precision).formulas().crop_and_flip, say=say,
    )  # fmt: skip
    source = opened(BetonLoader(dataset.beton("train"), config.train.batch_size))
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
    if held_out is None:
        source = opened(BetonLoader(dataset.beton("test"), config.selection.batch_size))
        held_out = np.arange(len(source.labels))
    else:
        source = _in_other_batches(source, config.selection.batch_size)
    chosen = spread(held_out, config.selection.examples)
    return training, EvaluationStream(source, chosen, numbers.weights)


def _in_other_batches(source: Source, batch_size: int) -> Source:
    """Return the same images, not kept twice where they are kept."""
    if isinstance(source, ResidentSource):
        return replace(source, batch_size=batch_size)
    assert isinstance(source, HostSource)
    return HostSource(BetonLoader(source.loader.path, batch_size), source.device)


def describe(parts: Parts) -> dict[str, Any]:
    """Return what a run should remember of its surroundings beside the settings."""
    device = torch.cuda.get_device_name(parts.device) if parts.device.type == "cuda" else "cpu"
    return {
        "data": {
            "folder": str(parts.dataset.folder.absolute()),
            "name": parts.dataset.name,
            "classes": len(parts.dataset.classes),
            "size": list(parts.dataset.size),
            "train_sha256": parts.dataset.splits["train"]["sha256"],
            "test_sha256": parts.dataset.splits["test"]["sha256"],
        },
        "initial": {name: {"file": str(file), "sha256": sha} for name, (file, sha) in parts.initial.items()},
        "device": device,
        "versions": _versions(),
    }


def _versions() -> dict[str, str | None]:
    versions = {name: metadata.version(name) for name in ("fastpeer", "ffcv", "numpy")}
    own = {"python": platform.python_version(), "torch": torch.__version__, "cuda": torch.version.cuda}
    return {**own, **versions}
