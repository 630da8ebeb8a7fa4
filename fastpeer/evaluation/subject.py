"""A network with the images that it is evaluated on, and what is said of it: results, verdicts on images."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from torch import nn

from fastpeer.data.dataset import PreparedDataset
from fastpeer.data.stream import EvaluationStream
from fastpeer.evaluation.accuracy import Classified
from fastpeer.evaluation.attack_names import autoattacks_of
from fastpeer.evaluation.autoattack_parts.standard import target_count
from fastpeer.evaluation.by_image import ByImage
from fastpeer.evaluation.results import Result
from fastpeer.evaluation.targets import Target
from fastpeer.evaluation.verdicts import VerdictsFile


@dataclass(frozen=True)
class Subject:
    """A network on the device, with the images that it is evaluated on.

    Attributes:
        target: whose network it is.
        network: in float32.
        sha256: of the bytes that it was loaded from.
        dataset: the data set, in the size that the network sees.
        stream: its test images, or those of them that are asked for.
        side: that JPEGs are resized to; 0: as prepared.
        hidden: why attacks on the network may fail.
    """

    target: Target
    network: nn.Module
    sha256: str
    dataset: PreparedDataset
    stream: EvaluationStream
    side: int
    hidden: tuple[str, ...]


def verdicts_file(subject: Subject, facts: Mapping[str, Any]) -> VerdictsFile:
    """Return the file that AutoAttack keeps a subject's verdicts in; `facts` are those of its result."""
    # Wherever the run lies now; AutoAttack chooses its step sizes itself.
    kept = {name: fact for name, fact in facts.items() if name not in ("target", "step_size")}
    return VerdictsFile(subject.target.verdicts_folder, kept | {"examples": len(subject.stream.indices)})


def result_of(
    attack: str, found: Classified, seconds: float, facts: dict[str, Any], subject: Subject
) -> Result:
    """Return what was found of a subject under an attack; `facts` are the other fields of the result."""
    classes = len(subject.dataset.classes)
    targets = target_count(classes) if {"apgd-t", "fab-t"} & set(autoattacks_of(attack, classes)) else None
    by_image = _by_image(found, subject)
    return Result(
        attack=attack,
        correct=int(found.correct.sum()),
        images=len(found.correct),
        non_finite=int((~found.finite).sum()),
        seconds=seconds,
        targets=targets,
        broken=dict(found.broken),
        worst_class=asdict(by_image.worst_class()),
        by_image=by_image,
        **facts,
    )


def _by_image(found: Classified, subject: Subject) -> ByImage:
    indices, verdicts = subject.stream.indices, found.verdicts
    return ByImage(
        index=indices.astype(np.int32),
        label=subject.stream.source.labels[indices].astype(np.int32),
        correct=found.correct.numpy(),
        finite=found.finite.numpy(),
        fallen=np.zeros(0, np.int8) if verdicts is None else verdicts.fallen,
        attacks=() if verdicts is None else verdicts.attacks,
        classes=tuple(subject.dataset.classes),
    )


def network_facts(facts: Mapping[str, Any]) -> dict[str, Any]:
    """Return those of a result's facts that say which network was run, and how, without an attack."""
    network = ("target", "weights_sha256", "weights_key", "mean", "std")
    return {name: facts[name] for name in (*network, "side", "dataset", "batch_size", "torch")}
