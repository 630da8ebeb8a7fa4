"""Accuracy on corrupted images: each corruption and severity, and the mean over both."""

from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import fmean
from time import perf_counter
from typing import Any

import numpy as np
import torch

from fastpeer.data.stream import EvaluationStream, spread
from fastpeer.device import memory_errors
from fastpeer.evaluation.accuracy import classify_under_attack
from fastpeer.evaluation.corruption_sets import BENCHMARK, SEVERITIES, CorruptionSet, open_corruptions
from fastpeer.evaluation.protocol import Protocol, Watch
from fastpeer.evaluation.subject import Subject, network_facts
from fastpeer.evaluation.targets import Target
from fastpeer.files import file_sha256
from fastpeer.printing import FigureTable, Row
from fastpeer.table_formats import Report

SECTION = "corruptions"
"""Of the results' file."""
KEY = ("target", "weights_sha256", "weights_key", "mean", "std", "labels_sha256", "images", "side")


@dataclass(frozen=True)
class Corrupted:
    """How a network classified the images of one corruption.

    Attributes:
        name: the corruption's.
        sha256: of its file.
        correct, non_finite: images classified correctly, and with logits that are NaN or infinite, which are
            not: for each severity, from 1 on.
    """

    name: str
    sha256: str
    correct: tuple[int, ...]
    non_finite: tuple[int, ...]


@dataclass(frozen=True)
class CorruptionResult:
    """Accuracies of one student on corrupted images.

    Attributes:
        facts: of the network (`network_facts`), as results have them.
        labels_sha256: of the file of labels.
        images, total: of each severity: how many were classified, and how many there are.
        found: by corruption.
        missing: the benchmark's corruptions that the folder lacks.
        seconds: of all.
    """

    facts: dict[str, Any]
    labels_sha256: str
    images: int
    total: int
    found: tuple[Corrupted, ...]
    missing: tuple[str, ...]
    seconds: float

    @property
    def averaged(self) -> list[Corrupted]:
        """Those that the mean is over: the benchmark's; where there is none of them, all."""
        return [one for one in self.found if one.name in BENCHMARK] or list(self.found)

    @property
    def mean(self) -> float:
        """Mean accuracy in % over severities and the corruptions in `averaged`."""
        return fmean(fmean(self.accuracies(one)) for one in self.averaged)

    def accuracies(self, one: Corrupted) -> list[float]:
        """Return a corruption's accuracies in %, by severity."""
        return [100 * correct / self.images for correct in one.correct]

    def entry(self) -> dict[str, Any]:
        """Return the entry in the results' file."""
        counts = {"labels_sha256": self.labels_sha256, "images": self.images, "total": self.total}
        found = [asdict(one) | {"accuracy": self.accuracies(one)} for one in self.found]
        mean = {"mean_accuracy": self.mean, "mean_over": [one.name for one in self.averaged]}
        rest = {"missing": self.missing, "seconds": self.seconds}
        return {**self.facts, **counts, **mean, **rest, "corruptions": found}


def classify_corrupted(
    protocol: Protocol, target: Target, data: Path | None, model: str, folder: Path, watch: Watch
) -> CorruptionResult:
    """Classify all images of a folder in CIFAR-10-C's layout, or those that `protocol.examples` asks for.

    Args:
        protocol: says how; its attacks are not made.
        target: the student's weights.
        data: folder of the prepared data set whose classes the labels number; None: the run's own.
        model: name of the network; empty: the run's, or the one that the file records.
        folder: of the images.
        watch: shows progress.

    Raises:
        UserError: weights, data or images are missing or do not fit, or the device runs out of memory.
    """
    subject = protocol.subject(target, data, model)
    images = open_corruptions(folder, subject.dataset.classes, subject.dataset.size)
    chosen, began = spread(np.arange(len(images.labels)), protocol.examples), perf_counter()
    found = tuple(_corrupted(protocol, subject, images, chosen, watch))
    return CorruptionResult(
        facts=network_facts(protocol.facts(subject)),
        labels_sha256=file_sha256(folder / "labels.npy"),
        images=len(chosen),
        total=len(images.labels),
        found=found,
        missing=tuple(images.missing),
        seconds=round(perf_counter() - began, 2),
    )


def _corrupted(
    protocol: Protocol, subject: Subject, images: CorruptionSet, chosen: np.ndarray, watch: Watch
) -> Iterator[Corrupted]:
    settings = protocol.settings(subject.dataset)
    for name in images.names:
        correct, non_finite = [], []
        for severity in range(1, SEVERITIES + 1):
            source = images.images(name, severity, protocol.batch_size, protocol.device)
            stream = EvaluationStream(source, chosen, torch.float32)
            title = f"{subject.target.label}: {name} {severity}"
            with watch(title, len(chosen)) as progress, memory_errors("--batch-size"):
                classified = classify_under_attack("clean", subject.network, stream, settings, progress)
            correct.append(int(classified.correct.sum()))
            non_finite.append(int((~classified.finite).sum()))
        yield Corrupted(name, file_sha256(images.file(name)), tuple(correct), tuple(non_finite))


def report_corruptions(results: Sequence[CorruptionResult], report: Report) -> None:
    """Write a table for each student, with notes on what its mean is over."""
    for result in results:
        images = f"{result.images} of {result.total}" if result.images < result.total else f"{result.total}"
        title = f"accuracy in % on corrupted images, {images} of each severity, fp32"
        report.tables(f"{result.facts['target']}: {title}", [_table(result)])
    for result in results:
        for note in _notes(result):
            report.note(f"{result.facts['target']}: {note}")


def _table(result: CorruptionResult) -> FigureTable:
    rows = [_row(one.name, result.accuracies(one)) for one in result.found]
    by_severity = np.mean([result.accuracies(one) for one in result.averaged], axis=0)
    mean = _row(f"mean of {len(result.averaged)}", by_severity.tolist())
    severities = (f"severity {severity}" for severity in range(1, SEVERITIES + 1))
    return FigureTable(("corruption", *severities, "mean"), [rows, [mean]])


def _row(name: str, accuracies: Sequence[float]) -> Row:
    return Row(name, [f"{accuracy:.2f}" for accuracy in (*accuracies, fmean(accuracies))])


def _notes(result: CorruptionResult) -> Iterator[str]:
    averaged = [one.name for one in result.averaged]
    if result.missing:
        what = "no corruption of the benchmark's" if averaged[0] not in BENCHMARK else "part of the benchmark"
        count = f"{len(result.missing)} of its {len(BENCHMARK)} are missing"
        yield f"{what}: {count}: {', '.join(result.missing)}"
    further = [one.name for one in result.found if one.name not in averaged]
    if further:
        yield f"not in the mean, which is over the benchmark's corruptions: {', '.join(further)}"
    if lost := sum(sum(one.non_finite) for one in result.found):
        yield f"{lost} images had logits that are NaN or infinite; they count as classified wrongly"
