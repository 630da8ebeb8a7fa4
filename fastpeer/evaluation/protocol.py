"""Runs the attacks of an evaluation on one student: always float32, no TF32, on the test split."""

import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from fastpeer.data.dataset import PreparedDataset, open_dataset
from fastpeer.data.host import HostSource
from fastpeer.data.split import open_split
from fastpeer.data.stream import EvaluationStream, spread
from fastpeer.device import memory_errors, placed
from fastpeer.errors import UserError
from fastpeer.evaluation.accuracy import Progress, evaluation_options, right_under_attack
from fastpeer.evaluation.attacks import AttackSettings
from fastpeer.evaluation.autoattack import target_count
from fastpeer.evaluation.results import Result
from fastpeer.evaluation.targets import Target
from fastpeer.models import build_model
from fastpeer.models.weights import load_weights, recorded_normalization
from fastpeer.run_folder import network_name
from fastpeer.step.precision import number_format

Watch = Callable[[str, int], AbstractContextManager[Progress]]
"""Given what is done and on how many images, a context that shows the progress."""


@dataclass(frozen=True)
class Protocol:
    """What is done to every target.

    Attributes:
        attacks: names, in order.
        examples: use only so many images, evenly spread; 0: all.
        epsilon, step_size: of the attacks.
        seed: of random starts.
        batch_size: images attacked at once.
        device: where.
        size: side of the images, of data sets kept as JPEG; 0: what the run was trained on.
        mean, std: normalisation within the networks; empty: what their runs or files say.
    """

    attacks: list[str]
    examples: int
    epsilon: float
    step_size: float
    seed: int
    batch_size: int
    device: torch.device
    size: int = 0
    mean: tuple[float, ...] = ()
    std: tuple[float, ...] = ()

    def run(self, target: Target, data: Path | None, model: str, watch: Watch) -> Iterator[Result]:
        """Attack one student, and yield what each attack leaves.

        Args:
            target: its weights.
            data: a prepared data set; None: the run's own.
            model: network of weights that belong to no run.
            watch: shows progress.

        Raises:
            UserError: weights or data are missing or do not fit.
        """
        number_format("fp32").allow_tf32()
        dataset = open_dataset(_data_folder(target, data)).seen_at(self.size or _trained_at(target), "--size")
        network = placed(self._network(target, model, dataset), self.device, torch.float32)
        source = HostSource(open_split(dataset, "test", self.batch_size), self.device)
        chosen = spread(np.arange(len(source.labels)), self.examples)
        stream = EvaluationStream(source, chosen, torch.float32)
        for name in self.attacks:
            yield self._result(name, network, stream, dataset, target, watch)

    def _network(self, target: Target, model: str, dataset: PreparedDataset) -> nn.Module:
        name = model
        if not name and target.config is not None:
            name = network_name(target.config, target.weights)
        if not name:
            raise UserError(
                f"{target.weights} lies outside a run folder: say which network it is, --model NAME"
            )
        mean, std = (self.mean, self.std) if self.mean else _normalization(target, name)
        network = build_model(name, len(dataset.classes), dataset.size, mean=mean, std=std)
        load_weights(network, target.weights)
        return network

    def _result(
        self, name: str, network: nn.Module, stream: EvaluationStream, dataset: PreparedDataset,
        target: Target, watch: Watch,
    ) -> Result:  # fmt: skip
        classes, images = len(dataset.classes), len(stream.indices)
        settings = AttackSettings(
            self.epsilon,
            self.step_size,
            classes,
            self.seed,
            self.batch_size,
            evaluation_options(self.device),
        )
        began = time.perf_counter()
        with watch(f"{target.label}: {name}", images) as progress, memory_errors("--batch-size"):
            right: Tensor = right_under_attack(name, network, stream, settings, progress)
        return Result(
            target=target.label,
            weights_sha256=target.sha256,
            attack=name,
            correct=int(right.sum()),
            images=images,
            total=len(stream.source.labels),
            epsilon=self.epsilon,
            step_size=self.step_size,
            seed=self.seed,
            batch_size=self.batch_size,
            targets=target_count(classes) if name == "aa" else None,
            dataset=dataset.name,
            data_sha256=dataset.splits["test"]["sha256"],
            seconds=round(time.perf_counter() - began, 2),
            torch=torch.__version__,
            side=self.size or _trained_at(target),
        )


def _trained_at(target: Target) -> int:
    return target.config.data.size if target.config is not None else 0


def _normalization(target: Target, network: str) -> tuple[tuple[float, ...], tuple[float, ...]]:
    if target.config is not None:
        return target.config.model.mean, target.config.model.std
    return recorded_normalization(target.weights, network) or ((), ())


def _data_folder(target: Target, data: Path | None) -> Path:
    if data is not None:
        return data
    if target.run is None:
        raise UserError(f"{target.weights} lies outside a run folder: say --data DIR and --model NAME")
    return Path(target.run.read_facts()["data"]["folder"])
