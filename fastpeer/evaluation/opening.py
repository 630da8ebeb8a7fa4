"""Opens a finished network by itself, without a data set: from a run, a checkpoint or a file with weights."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

from torch import nn

from fastpeer.data.dataset import PreparedDataset, open_dataset
from fastpeer.errors import UserError, printable
from fastpeer.evaluation.results import Result, read_results
from fastpeer.evaluation.targets import Target, find_targets
from fastpeer.manifest import recorded_sha256
from fastpeer.models import build_model
from fastpeer.models.pixel_range import Normalization
from fastpeer.models.weight_facts import recorded_facts
from fastpeer.models.weights import load_weights
from fastpeer.run_folder import RunFolder

MOST_CLASSES = 1_000_000


@dataclass(frozen=True, kw_only=True)
class Wanted:
    """What is asked for of a network, where its run or file does not tell; empty or 0: what that tells.

    Attributes:
        checkpoint: last, swa, best or best-swa, of a run.
        model: name of the network, as `build_model` takes it.
        classes: number of logits.
        size: height and width of the images.
        mean, std: normalisation inside the network.
        weights_key: which set of weights in a file with several.
        force_settings: whether a run's settings may differ from those of its training.
    """

    checkpoint: str = "best"
    model: str = ""
    classes: int = 0
    size: int = 0
    mean: tuple[float, ...] = ()
    std: tuple[float, ...] = ()
    weights_key: str = ""
    force_settings: bool = False


@dataclass(frozen=True)
class OpenedNetwork:
    """A finished network, on the CPU in float32 and in eval mode, and what is known of it.

    Attributes:
        network: maps images (B, 3, H, W) in [0, 1] to logits (B, classes).
        name: its name, as `build_model` takes it.
        classes: number of logits.
        size: height and width of the images it was trained on, in pixels; None: not recorded.
        normalization: mean and std inside the network; empty: none.
        target: the weights and the run that they belong to.
        data_name: name of the data set it was trained on; empty: not recorded.
    """

    network: nn.Module
    name: str
    classes: int
    size: tuple[int, int] | None
    normalization: Normalization
    target: Target
    data_name: str

    @cached_property
    def sha256(self) -> str:
        """SHA-256 of the weight file, which was compared with its manifest, if it has one, when opened."""
        return recorded_sha256(self.target.weights) or self.target.sha256

    def dataset(self) -> PreparedDataset | None:
        """Return the prepared data that the run was trained on, if it is still where it was."""
        try:
            data = self.target.run.read_facts()["data"] if self.target.run else {}
            dataset = open_dataset(Path(data["folder"]))
            same = dataset.splits["test"]["sha256"] == data["test_sha256"]
            return dataset.seen_at(self.size[0] if self.size else 0) if same else None
        except (UserError, KeyError, TypeError, OSError):
            return None


def open_network(path: Path, wanted: Wanted, flag: str = "--") -> OpenedNetwork:
    """Open the network of a run folder, a checkpoint's folder or a file with weights.

    Args:
        path: run, checkpoint or file.
        wanted: what is asked for.
        flag: begins the names of `wanted` in messages, which are flags or arguments.

    Raises:
        UserError: there is no such network, or its weights are damaged or do not fit; or its class is code
            that nobody asked to run (`fastpeer.own_code`).
    """
    target = _target(path, wanted)
    facts, data = recorded_facts(target.weights), _data_of(target.run)
    name = wanted.model or target.network(f"{flag}model", wanted.weights_key)
    classes = _asked_classes(wanted, flag) or _number(data.get("classes")) or _number(facts.classes)
    if not classes:
        raise UserError(f"{target.weights} does not record its number of classes: pass {flag}classes")
    size = (wanted.size,) * 2 if wanted.size else _size(data.get("size")) or _size(facts.size)
    key = wanted.weights_key
    mean, std = normalization = (wanted.mean, wanted.std) if wanted.mean else target.normalization(name, key)
    network = build_model(name, classes, size, mean=mean, std=std)
    load_weights(network, target.weights, key)
    data_name = printable(data.get("name") or facts.dataset)
    return OpenedNetwork(network.eval(), name, classes, size, normalization, target, data_name)


def _target(path: Path, wanted: Wanted) -> Target:
    targets = find_targets([path], wanted.checkpoint, wanted.force_settings)
    if len(targets) > 1:
        raise UserError(f"{path} holds {len(targets)} networks: name one run, and one of its checkpoints")
    return targets[0]


def _data_of(run: RunFolder | None) -> Mapping[str, Any]:
    data: Mapping[str, Any] = run.read_facts()["data"] if run else {}
    return data


def _asked_classes(wanted: Wanted, flag: str) -> int:
    if wanted.classes and not _number(wanted.classes):
        raise UserError(f"{flag}classes must be from 1 to {MOST_CLASSES:,}, got {wanted.classes}")
    return wanted.classes


def _number(value: object) -> int:
    """Return a number of classes; 0 for what is none, in a file that may be a stranger's."""
    return value if type(value) is int and 0 < value <= MOST_CLASSES else 0


def _size(value: object) -> tuple[int, int] | None:
    sides = tuple(value) if isinstance(value, (list, tuple)) else ()
    if len(sides) == 2 and all(type(side) is int and 0 < side < 1 << 16 for side in sides):
        return sides[0], sides[1]
    return None


def label_of(opened: OpenedNetwork) -> str:
    """Name a network for whoever reads: its run's label, or its file's name."""
    return printable(opened.target.label if opened.target.run else opened.target.weights.name)


def results_of(opened: OpenedNetwork) -> list[Result]:
    """Return what `fastpeer eval` has found of these very weights with this normalisation, the newest last.

    Of the same attack on the same images there is one, whatever name the weights had.
    """
    asked, sha256 = ((), ()), opened.sha256
    found = {
        replace(result, target="").key: result
        for result in read_results(opened.target.results_file)
        if result.weights_sha256 == sha256 and (result.mean, result.std) in (asked, opened.normalization)
    }
    return list(found.values())
