"""Runs the attacks of an evaluation on a student: always in float32 without TF32, on the test split."""

import logging
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from fastpeer.config import AutoAttackWay, Norm, check_fits, doubts
from fastpeer.data.dataset import PreparedDataset, open_dataset
from fastpeer.data.host import HostSource
from fastpeer.data.split import open_split
from fastpeer.data.stream import EvaluationStream, spread
from fastpeer.device import memory_errors, placed
from fastpeer.errors import UserError
from fastpeer.evaluation.accuracy import Classified, classify_under_attack, evaluation_options
from fastpeer.evaluation.attacks import AUTOATTACKS, AttackSettings, Progress, fewest_steps
from fastpeer.evaluation.autoattack import attacks_of_set, target_count
from fastpeer.evaluation.hidden_gradients import hidden_gradients
from fastpeer.evaluation.results import Result
from fastpeer.evaluation.targets import Target
from fastpeer.evaluation.verdicts import VerdictsFile
from fastpeer.models import build_model
from fastpeer.models.pixel_range import Normalization
from fastpeer.models.weights import (
    load_weights,
    recorded_facts,
    recorded_network,
    recorded_normalization,
    report_normalization,
)
from fastpeer.run_folder import network_name
from fastpeer.step.precision import number_format

log = logging.getLogger(__name__)
Watch = Callable[[str, int], AbstractContextManager[Progress]]
"""Given a title and a number of images, returns a context that shows the progress."""


LOADS = 3
"""How often a file that is replaced while it is read is read again."""


@dataclass(frozen=True)
class Protocol:
    """The settings of an evaluation, the same for every target.

    Attributes:
        attacks: names of the attacks, in order.
        examples: number of test images, evenly spread; 0: all.
        epsilon, step_size: of the attacks, for images in [0, 1].
        norm: of the ball that the attacks stay in.
        seed: of the random starts.
        batch_size: images attacked at once.
        device: the device that computes.
        size: height and width of the images, for data sets kept as JPEG; 0: the size the run was trained at.
        mean, std: normalisation inside the networks; empty: as their runs or weight files record it.
        weights_key: which set of weights in a file with several; empty: the usual one.
        autoattack: who runs AutoAttack's attacks, and on what.
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
    weights_key: str = ""
    norm: Norm = "linf"
    autoattack: AutoAttackWay = "fast"

    def doubts(self) -> Iterator[str]:
        """Yield a line for each setting that looks like one of another norm."""
        return doubts(self.norm, self.epsilon, self.step_size, fewest_steps(self.attacks))

    def run(self, target: Target, data: Path | None, model: str, watch: Watch) -> Iterator[Result]:
        """Attack a student with each attack in turn, and yield the results as they are found.

        Args:
            target: the student's weights.
            data: folder of a prepared data set; None: the run's own.
            model: name of the network; empty: the run's, or the one that the file records.
            watch: shows progress.

        Raises:
            UserError: weights or data are missing or do not fit, or the device runs out of memory.
        """
        # Sets the process's TF32 switches, off for fp32.
        number_format("fp32").allow_tf32()
        dataset = open_dataset(_data_folder(target, data))
        side = self._image_size(target, dataset)
        dataset = dataset.seen_at(side, "--size")
        check_fits(self.norm, self.epsilon, dataset.size, "--epsilon")
        for name in set(self.attacks) & set(AUTOATTACKS):
            attacks_of_set(name, len(dataset.classes))  # Refuses too few classes before hours of attacks.
        network, sha256 = self._loaded(target, model, dataset)
        source = HostSource(open_split(dataset, "test", self.batch_size), self.device)
        chosen = spread(np.arange(len(source.labels)), self.examples)
        stream = EvaluationStream(source, chosen, torch.float32)
        facts = self._facts(target, dataset, len(source.labels)) | {"weights_sha256": sha256, "side": side}
        hidden = self._hidden_gradients(target, network, stream)
        # Wherever the run lies now; AutoAttack chooses its step sizes itself.
        subject = {name: fact for name, fact in facts.items() if name not in ("target", "step_size")}
        file = VerdictsFile(target.verdicts_folder, subject | {"examples": len(chosen)})
        for name in self.attacks:
            began = time.perf_counter()
            with watch(f"{target.label}: {name}", len(chosen)) as progress, memory_errors("--batch-size"):
                found = classify_under_attack(name, network, stream, self._settings(dataset), progress, file)
            seconds = round(found.seconds or time.perf_counter() - began, 2)
            _warn(target, [reason for reason in found.reasons if reason not in hidden])
            warnings = () if name == "clean" else tuple(dict.fromkeys([*hidden, *found.reasons]))
            way = self.autoattack if name in AUTOATTACKS else ""
            yield _result(name, found, seconds, facts | {"warnings": warnings, "autoattack": way}, dataset)

    def _loaded(self, target: Target, model: str, dataset: PreparedDataset) -> tuple[nn.Module, str]:
        """Return a student on the device, and the SHA-256 of the bytes that it was loaded from."""
        for _ in range(LOADS):
            before = target.sha256
            network = placed(self._network(target, model, dataset), self.device, torch.float32)
            # A run that trains on may have replaced the file between the two.
            if target.sha256 == before:
                return network, before
        raise UserError(f"{target.weights} is written all the time: evaluate a copy of it")

    def _hidden_gradients(self, target: Target, network: nn.Module, stream: EvaluationStream) -> list[str]:
        """Return and log why attacks on a network may fail; nothing, if it is not attacked."""
        if self.attacks == ["clean"]:
            return []
        with memory_errors("--batch-size"):
            reasons = hidden_gradients(network, stream)
        _warn(target, reasons)
        return reasons

    def _network(self, target: Target, model: str, dataset: PreparedDataset) -> nn.Module:
        name = model
        if not name and target.config is not None:
            name = network_name(target.config, target.weights)
        name = name or recorded_network(target.weights, "--model")
        if not name:
            raise UserError(f"{target.weights} belongs to no run: name its network with --model NAME")
        mean, std = (self.mean, self.std) if self.mean else self._recorded(target, name)
        network = build_model(name, len(dataset.classes), dataset.size, mean=mean, std=std)
        load_weights(network, target.weights, self.weights_key)
        # So that logits without a gradient are seen to be cut off from the images.
        return network.requires_grad_(False)

    def _recorded(self, target: Target, network: str) -> Normalization:
        """Return and log the normalisation that a run or file records; empty: none."""
        if target.config is not None:
            found, source = (target.config.model.mean, target.config.model.std), "run"
        else:
            recorded = recorded_normalization(target.weights, network, self.weights_key)
            found, source = recorded or ((), ()), "file"
        report_normalization(f"{target.label}:", found, source)
        return found

    def _settings(self, dataset: PreparedDataset) -> AttackSettings:
        return AttackSettings(
            epsilon=self.epsilon,
            step_size=self.step_size,
            classes=len(dataset.classes),
            seed=self.seed,
            batch_size=self.batch_size,
            options=evaluation_options(self.device),
            norm=self.norm,
            autoattack=self.autoattack,
        )

    def _facts(self, target: Target, dataset: PreparedDataset, total: int) -> dict[str, Any]:
        """Return the fields of a `Result`, but for checksum and side, that all attacks on a target share."""
        return {
            "target": target.label,
            "total": total,
            "epsilon": self.epsilon,
            "step_size": self.step_size,
            "seed": self.seed,
            "batch_size": self.batch_size,
            "dataset": dataset.name,
            "data_sha256": dataset.splits["test"]["sha256"],
            "torch": torch.__version__,
            "pixels": dataset.pixels,
            "norm": self.norm,
            "weights_key": self.weights_key,
            "mean": self.mean,
            "std": self.std,
        }

    def _image_size(self, target: Target, dataset: PreparedDataset) -> int:
        """Return the side that JPEGs are resized to: as asked for or in the training; 0: as prepared."""
        if self.size:
            return self.size
        if target.config is not None:
            return target.config.data.size
        recorded = recorded_facts(target.weights).size
        return recorded[0] if recorded and dataset.encoding == "jpeg" else 0


def _warn(target: Target, reasons: Sequence[str]) -> None:
    for reason in reasons:
        log.warning("%s: %s", target.label, reason)


def _result(
    attack: str, found: Classified, seconds: float, facts: dict[str, Any], dataset: PreparedDataset
) -> Result:
    targets = target_count(len(dataset.classes)) if attack in AUTOATTACKS else None
    return Result(
        attack=attack,
        correct=int(found.correct.sum()),
        images=len(found.correct),
        non_finite=int((~found.finite).sum()),
        seconds=seconds,
        targets=targets,
        broken=dict(found.broken),
        **facts,
    )


def _data_folder(target: Target, data: Path | None) -> Path:
    if data is not None:
        return data
    if target.run is None:
        model = "" if recorded_facts(target.weights).network else " and --model NAME"
        raise UserError(f"{target.weights} belongs to no run: pass --data DIR{model}")
    return Path(target.run.read_facts()["data"]["folder"])
