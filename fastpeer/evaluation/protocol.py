"""Runs the attacks of an evaluation on a student: always in float32 without TF32, on the test split."""

import logging
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from fastpeer.config import AutoAttackWay, Norm, check_fits, doubts, format_fraction
from fastpeer.data.dataset import PreparedDataset, open_dataset
from fastpeer.data.host import HostSource
from fastpeer.data.split import open_split
from fastpeer.data.stream import EvaluationStream, spread
from fastpeer.device import memory_errors, placed
from fastpeer.errors import UserError
from fastpeer.evaluation.accuracy import classify_under_attack, evaluation_options
from fastpeer.evaluation.attack_names import autoattacks_of, fewest_steps, uses_autoattack
from fastpeer.evaluation.attacks import AttackSettings, Progress
from fastpeer.evaluation.hidden_gradients import hidden_gradients
from fastpeer.evaluation.results import Result, read_results
from fastpeer.evaluation.subject import Subject, result_of, verdicts_file
from fastpeer.evaluation.targets import Target
from fastpeer.evaluation.tutors import find_tutors, tutored
from fastpeer.models import build_model
from fastpeer.models.pixel_range import Normalization
from fastpeer.models.weight_facts import recorded_facts
from fastpeer.models.weights import (
    load_weights,
    report_normalization,
)
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
        surrogates: networks that the images are made against, in place of the target; none: the target.
        curve: radii at which each attack is made in place of `epsilon`, 0 being the clean images; the step
            size keeps its ratio to the radius. Empty: `epsilon` alone.
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
    surrogates: tuple[Target, ...] = ()
    curve: tuple[float, ...] = ()

    @property
    def planned(self) -> list[tuple[str, float, float]]:
        """The attacks in their order, each at all radii: name, radius and step size."""
        radii = self.curve or (self.epsilon,)
        names = [name for name in self.attacks if name != "clean"]
        clean = "clean" in self.attacks or 0 in self.curve
        points = [(name, radius, self._step_size(radius)) for name in names for radius in radii]
        own = ("clean", self.epsilon, self.step_size)
        return [own] * clean + [point for point in points if point[1] > 0 or not self.curve]

    def _step_size(self, radius: float) -> float:
        # Not computed at the radius itself, where rounding would make it another one.
        same = radius == self.epsilon or self.epsilon == 0
        return self.step_size if same else self.step_size * (radius / self.epsilon)

    autoattack: AutoAttackWay = "fast"

    def doubts(self) -> Iterator[str]:
        """Yield a line for each setting that looks like one of another norm."""
        for radius in self.curve or (self.epsilon,):
            yield from doubts(self.norm, radius, self._step_size(radius), fewest_steps(self.attacks))

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
        subject = self.subject(target, data, model)
        # What flags say of the weights is about the target's.
        recorded = replace(self, mean=(), std=(), weights_key="")
        surrogates = [recorded._other(surrogate, subject) for surrogate in self.surrogates]
        for name, radius, step_size in self.planned:
            asked = replace(self, epsilon=radius, step_size=step_size)
            at = f", epsilon {format_fraction(radius)}" if self.curve else ""
            for attacked in surrogates if surrogates and name != "clean" else [subject]:
                yield asked._attacked(name, subject, attacked, f"{subject.target.label}: {name}{at}", watch)

    def run_tutors(self, target: Target, data: Path | None, model: str, watch: Watch) -> Iterator[Result]:
        """Hold a student against each of its tutors, as `tutored` does; arguments as of `run`.

        Yields four results for each tutor: the tutor's on clean images, under the attack on itself and on the
        student's examples, and the student's own, all found in the time that each states. The last of
        `attacks` is the attack.

        Raises:
            UserError: also where there is no tutor.
        """
        tutors = find_tutors(target)
        subject = self.subject(target, data, model)
        for tutor in tutors:
            asked = replace(self, mean=tutor.mean, std=tutor.std, weights_key=tutor.weights_key)
            other = asked._other(tutor.target, subject, tutor.network)
            facts = asked.facts(other) | {"role": tutor.role, "warnings": other.hidden}
            yield from self._tutored(subject, other, facts, f"{target.label} and its {tutor.role}", watch)

    def _tutored(
        self, student: Subject, tutor: Subject, facts: dict[str, Any], title: str, watch: Watch
    ) -> Iterator[Result]:
        """Yield the results of `run_tutors` for a tutor, of which `facts` are known."""
        began, attack = time.perf_counter(), self.attacks[-1]
        with watch(title, len(student.stream.indices)) as progress, memory_errors("--batch-size"):
            settings = self.settings(student.dataset)
            found = tutored(tutor.network, student.network, student.stream, attack, settings, progress)
        seconds = round(time.perf_counter() - began, 2)
        hidden = {"warnings": student.hidden}
        source = {"source": student.target.label, "source_sha256": student.sha256, "cosines": found.cosines}
        yield result_of("clean", found.clean, seconds, facts | {"warnings": ()}, student)
        yield result_of(attack, found.own, seconds, facts, student)
        yield result_of(attack, found.students, seconds, facts | source | hidden, student)
        yield result_of(attack, found.student, seconds, self.facts(student) | hidden, student)

    def subject(self, target: Target, data: Path | None, model: str) -> Subject:
        """Load a student and open its test images; arguments and errors as of `run`."""
        # Sets the process's TF32 switches, off for fp32.
        number_format("fp32").allow_tf32()
        dataset = open_dataset(_data_folder(target, data, self.weights_key))
        side = self._image_size(target, dataset)
        dataset = dataset.seen_at(side, "--size")
        check_fits(self.norm, self.epsilon, dataset.size, "--epsilon")
        check_fits(self.norm, max(self.curve, default=0.0), dataset.size, "--curve")
        for name in self.attacks:
            autoattacks_of(name, len(dataset.classes))  # Refuses too few classes before hours of attacks.
        network, sha256 = self._loaded(target, model, dataset)
        source = HostSource(open_split(dataset, "test", self.batch_size), self.device)
        chosen = spread(np.arange(len(source.labels)), self.examples)
        stream = EvaluationStream(source, chosen, torch.float32)
        hidden = () if self.surrogates else self._hidden_gradients(target, network, stream)
        return Subject(target, network, sha256, dataset, stream, side, hidden)

    def _other(self, target: Target, subject: Subject, model: str = "") -> Subject:
        """Return another network with a subject's images."""
        network, sha256 = self._loaded(target, model, subject.dataset)
        hidden = self._hidden_gradients(target, network, subject.stream)
        return replace(subject, target=target, network=network, sha256=sha256, hidden=hidden)

    def _attacked(self, name: str, subject: Subject, attacked: Subject, title: str, watch: Watch) -> Result:
        """Return how a subject classifies images that are made against itself, or against another network."""
        facts, other = self.facts(subject), None
        if attacked is not subject:
            title, other = f"{title} from {attacked.target.label}", attacked.network
            facts |= {"source": attacked.target.label, "source_sha256": attacked.sha256}
        settings, images = self.settings(subject.dataset), len(subject.stream.indices)
        if uses_autoattack(name):
            facts["autoattack"] = self.autoattack
        file = verdicts_file(subject, facts)
        began = time.perf_counter()
        with watch(title, images) as progress, memory_errors("--batch-size"):
            found = classify_under_attack(
                name, subject.network, subject.stream, settings, progress, file, other
            )
        seconds = round(found.seconds or time.perf_counter() - began, 2)
        _warn(subject.target, [reason for reason in found.reasons if reason not in attacked.hidden])
        warnings = () if name == "clean" else tuple(dict.fromkeys([*attacked.hidden, *found.reasons]))
        return result_of(name, found, seconds, facts | {"warnings": warnings}, subject)

    def stored(self, target: Target) -> Iterator[Result]:
        """Yield what former evaluations with these settings have stored of a student, in the attacks' order.

        Raises:
            UserError: one of the attacks was not made, or with other settings.
        """
        sha256, results = target.sha256, read_results(target.results_file)
        for name, radius, step_size in self.planned:
            way = self.autoattack if uses_autoattack(name) else ""
            ball = (name, way, self.norm, radius, step_size)
            asked = (*ball, self.seed, self.batch_size, sha256, target.label, "")
            # The newest stands last.
            for result in reversed(results):
                if self._settings_of(result) == asked and self.examples in (0, result.images):
                    yield result
                    break
            else:
                at = "" if name == "clean" else f" at epsilon {format_fraction(radius)}"
                raise UserError(
                    f"{target.results_file} holds no result of {target.label} under {name}{at} with these"
                    " settings: evaluate without --stored"
                )

    def _settings_of(self, result: Result) -> tuple[object, ...]:
        ball = (result.attack, result.autoattack, result.norm, result.epsilon, result.step_size)
        network = (result.weights_sha256, result.target, result.source)
        return (*ball, result.seed, result.batch_size, *network)

    def _loaded(self, target: Target, model: str, dataset: PreparedDataset) -> tuple[nn.Module, str]:
        """Return a student on the device, and the SHA-256 of the bytes that it was loaded from."""
        for _ in range(LOADS):
            before = target.sha256
            network = placed(self._network(target, model, dataset), self.device, torch.float32)
            # A run that trains on may have replaced the file between the two.
            if target.sha256 == before:
                return network, before
        raise UserError(f"{target.weights} is written all the time: evaluate a copy of it")

    def _hidden_gradients(
        self, target: Target, network: nn.Module, stream: EvaluationStream
    ) -> tuple[str, ...]:
        """Return and log why attacks on a network may fail; nothing, if it is not attacked."""
        if self.attacks == ["clean"]:
            return ()
        with memory_errors("--batch-size"):
            reasons = hidden_gradients(network, stream)
        _warn(target, reasons)
        return tuple(reasons)

    def _network(self, target: Target, model: str, dataset: PreparedDataset) -> nn.Module:
        name = model or target.network("--model", self.weights_key)
        self._check_size(target, dataset)
        mean, std = (self.mean, self.std) if self.mean else self._recorded(target, name)
        network = build_model(name, len(dataset.classes), dataset.size, mean=mean, std=std)
        load_weights(network, target.weights, self.weights_key)
        # So that logits without a gradient are seen to be cut off from the images.
        return network.requires_grad_(False)

    def _check_size(self, target: Target, dataset: PreparedDataset) -> None:
        """Refuse images of another size than the network was trained on, unless --size asks for it.

        Pooling lets most networks take any size, and be wrong about it.
        """
        trained = recorded_facts(target.weights).size
        if not self.size and len(trained) == 2 and trained != dataset.size:
            own, given = (f"{size[0]}x{size[1]}" for size in (trained, dataset.size))
            raise UserError(
                f"{target.label} was trained on images of {own} pixels, got {given} in {dataset.folder}: name"
                f" another --data, or ask for them by --size {dataset.size[0]}"
            )

    def _recorded(self, target: Target, network: str) -> Normalization:
        """Return and log the normalisation that a run or file records; empty: none."""
        found = target.normalization(network, self.weights_key)
        report_normalization(f"{target.label}:", found, "run" if target.config else "file")
        return found

    def settings(self, dataset: PreparedDataset) -> AttackSettings:
        """Return what all attacks on a data set share."""
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

    def facts(self, subject: Subject) -> dict[str, Any]:
        """Return the fields of a `Result` that all attacks on a subject share."""
        dataset = subject.dataset
        return {
            "target": subject.target.label,
            "weights_sha256": subject.sha256,
            "total": len(subject.stream.source.labels),
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
            "side": subject.side,
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


def _data_folder(target: Target, data: Path | None, weights_key: str) -> Path:
    if data is not None:
        return data
    if target.run is None:
        model = "" if recorded_facts(target.weights).network else " and --model NAME"
        raise target.without_run(f"pass --data DIR{model}", weights_key)
    return Path(target.run.read_facts()["data"]["folder"])
