"""Certified accuracy of a smoothed network: image by image, kept so that a stopped one goes on."""

import logging
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, astuple, dataclass
from pathlib import Path
from time import perf_counter
from typing import Any

import numpy as np
import torch

from fastpeer.device import memory_errors
from fastpeer.evaluation.attacks import Progress
from fastpeer.evaluation.protocol import Protocol, Watch
from fastpeer.evaluation.results import wilson_interval
from fastpeer.evaluation.smoothing import ABSTAINS, Certificate, Smoothing, certify, radius
from fastpeer.evaluation.state_file import StateFile
from fastpeer.evaluation.subject import Subject, network_facts
from fastpeer.evaluation.table import images_text
from fastpeer.evaluation.targets import Target
from fastpeer.printing import FigureTable, Row, format_seconds
from fastpeer.table_formats import Report
from fastpeer.victims.pgd import evaluating

log = logging.getLogger(__name__)
SECTION = "certificates"
"""Of the results' file."""
KEY = (
    "target", "weights_sha256", "weights_key", "mean", "std", "data_sha256", "images", "side", "sigma",
    "selection", "samples", "alpha", "seed", "batch_size",
)  # fmt: skip
FORMAT = 1
KEPT_EVERY = 1.0
"""Seconds of work that a kill may lose, beside the image that is being certified."""
STEPS = 4
"""Points of the curve for each σ."""


@dataclass(frozen=True)
class CertificateResult:
    """What is certified of one student.

    Attributes:
        facts: of the network (`network_facts`), and `data_sha256`.
        smoothing: how.
        labels: int64 (N,), of the certified images.
        found: of each image.
        total: images in the test split.
        trained_with_noise: whether the network was trained on images with Gaussian noise; None: unknown.
        seconds: those before a stop included.
        file: name of the file that has `found`.
    """

    facts: dict[str, Any]
    smoothing: Smoothing
    labels: np.ndarray
    found: tuple[Certificate, ...]
    total: int
    trained_with_noise: bool | None
    seconds: float
    file: str

    @property
    def right(self) -> np.ndarray:
        """Radii (N,) of the images that are classified correctly; −1 of the others."""
        pairs = zip(self.labels, self.found, strict=True)
        return np.array([one.radius if one.predicted == label else -1.0 for label, one in pairs])

    @property
    def abstained(self) -> int:
        """Images without a class."""
        return sum(one.predicted == ABSTAINS for one in self.found)

    @property
    def curve(self) -> list[tuple[float, float]]:
        """Radii, and the certified accuracy in % at each: classified correctly, by that radius or more."""
        step, largest, right = self.smoothing.sigma / STEPS, self.smoothing.largest_radius, self.right
        radii = [number * step for number in range(int(largest / step) + 1)]
        return [(least, 100 * float((right >= least).mean())) for least in radii]

    def entry(self) -> dict[str, Any]:
        """Return the entry in the results' file."""
        counts = {
            "images": len(self.found), "total": self.total, "abstained": self.abstained,
            "non_finite": sum(one.non_finite for one in self.found),
        }  # fmt: skip
        curve = [{"radius": least, "certified_accuracy": accuracy} for least, accuracy in self.curve]
        rest = {"trained_with_noise": self.trained_with_noise, "seconds": self.seconds, "by_image": self.file}
        mean = {"mean_certified_radius": float(self.right.clip(0).mean())}
        return {**self.facts, **asdict(self.smoothing), **counts, **mean, **rest, "curve": curve}


def certify_images(
    protocol: Protocol, target: Target, data: Path | None, model: str, smoothing: Smoothing, watch: Watch
) -> CertificateResult:
    """Certify the test images of a student, or those that `protocol.examples` asks for.

    Args:
        protocol: says how; its attacks are not made.
        target: the student's weights.
        data: folder of a prepared data set; None: the run's own.
        model: name of the network; empty: the run's, or the one that the file records.
        smoothing: the certificate's own settings.
        watch: shows progress.

    Raises:
        UserError: weights or data are missing or do not fit, or the device runs out of memory.
    """
    subject = protocol.subject(target, data, model)
    source, indices = subject.stream.source, subject.stream.indices
    facts = network_facts(protocol.facts(subject)) | {"data_sha256": subject.dataset.splits["test"]["sha256"]}
    kept = {name: fact for name, fact in facts.items() if name != "target"}
    file = StateFile(
        target.verdicts_folder, "certificate", "the certificate",
        {**kept, **asdict(smoothing), "examples": len(indices)}, FORMAT,
    )  # fmt: skip
    work = _Work(subject, smoothing, file)
    with watch(f"{target.label}: certificate", len(indices)) as progress, memory_errors("--batch-size"):
        work.to_the_end(progress)
    return CertificateResult(
        facts, smoothing, source.labels[indices], tuple(work.found), len(source.labels),
        # No recipe trains on images with Gaussian noise; what others' files were trained on is not recorded.
        False if target.config is not None else None, round(work.seconds, 2), file.path.name,
    )  # fmt: skip


class _Work:
    """Certifies what is left; keeps and shows what is known."""

    def __init__(self, subject: Subject, smoothing: Smoothing, file: StateFile) -> None:
        self.subject, self.smoothing, self.file = subject, smoothing, file
        kept = file.read(lambda state: _checked(state, subject, smoothing))
        self.found, self.seconds = kept or ([], 0.0)
        self._tell_of_kept()

    def _tell_of_kept(self) -> None:
        done, count = len(self.found), len(self.subject.stream.indices)
        if done == count:
            log.warning("%s: these images were certified before, and are not again", self.file.path)
        elif done:
            log.warning("the certificate goes on where it was stopped: image %d of %d", done + 1, count)

    def to_the_end(self, progress: Progress) -> None:
        """Certify all images, and keep what was found every second or so."""
        indices, first, before = self.subject.stream.indices, len(self.found), self.seconds
        began = kept = perf_counter()
        with evaluating(self.subject.network):
            for index, image in self._images(first):
                self.found.append(certify(self.subject.network, image, index, self.smoothing))
                now = perf_counter()
                self.seconds = before + now - began
                if now - kept >= KEPT_EVERY or len(self.found) == len(indices):
                    self._keep()
                    kept = now
                left = (now - began) / (len(self.found) - first) * (len(indices) - len(self.found))
                progress(len(self.found), f"about {format_seconds(left)} left" if left else "")

    def _images(self, first: int) -> Iterator[tuple[int, torch.Tensor]]:
        stream = self.subject.stream.only(np.arange(first, len(self.subject.stream.indices)))
        images = (image for batch in stream for image in batch.images) if len(stream.indices) else ()
        yield from zip(map(int, stream.indices), images, strict=True)

    def _keep(self) -> None:
        images = [list(astuple(one)) for one in self.found]
        self.file.write({"seconds": round(self.seconds, 2), "images": images})


def _checked(
    state: Mapping[str, Any], subject: Subject, smoothing: Smoothing
) -> tuple[list[Certificate], float]:
    """Return what a file that anybody may have written holds; ValueError: it is no such certificate's."""
    found = [Certificate(*entry) for entry in state["images"]]
    classes, count = len(subject.dataset.classes), len(subject.stream.indices)
    if len(found) > count or not all(_is_possible(one, classes, smoothing) for one in found):
        raise ValueError("it is of other images")
    if type(state["seconds"]) not in (int, float):
        raise ValueError("its seconds must be a number")
    return found, float(state["seconds"])


def _is_possible(one: Certificate, classes: int, smoothing: Smoothing) -> bool:
    """Tell whether an image's certificate follows from its count."""
    numbers = (one.predicted, one.guess, one.count, one.non_finite)
    if any(type(number) is not int for number in numbers) or type(one.radius) is not float:
        return False
    if not (0 <= one.guess < classes and 0 <= one.count <= smoothing.samples):
        return False
    certified = radius(one.count, smoothing.samples, smoothing)
    predicted = one.guess if certified else ABSTAINS
    return one.predicted == predicted and math.isclose(one.radius, certified, rel_tol=1e-9)


def report_certificates(results: Sequence[CertificateResult], report: Report) -> None:
    """Write each student's certified accuracy over the radius, and what it holds for."""
    for result in results:
        rows = [_row(result, *point) for point in result.curve]
        report.tables(_title(result), [FigureTable(("L2 radius", "certified accuracy"), [rows])])
    for result in results:
        for note in _notes(result):
            report.note(f"{result.facts['target']}: {note}")


def _title(result: CertificateResult) -> str:
    how, count = result.smoothing, len(result.found)
    images = images_text(count, result.total, str(result.facts["dataset"]))
    return f"{result.facts['target']}: certified accuracy in % on {images}, smoothed by sigma {how.sigma:g}"


def _row(result: CertificateResult, least: float, accuracy: float) -> Row:
    text, count = f"{accuracy:.2f}", len(result.found)
    if count < result.total:
        low, high = wilson_interval(int((result.right >= least).sum()), count)
        text += f" [{low:.1f}, {high:.1f}]"
    return Row(f"{least:.4g}", [text])


def _notes(result: CertificateResult) -> Iterator[str]:
    how = result.smoothing
    yield (
        f"n0 {how.selection}, n {how.samples}, alpha {how.alpha:g} for each image; no radius can be above"
        f" {how.largest_radius:.4g} with so many; mean certified radius {result.right.clip(0).mean():.4g}"
    )
    yield f"abstained on {result.abstained} of {len(result.found)} images, which count as classified wrongly"
    if result.trained_with_noise is not True:
        was = "it is not known whether the network was" if result.trained_with_noise is None else "was not"
        yield f"{was} trained on noisy images, without which smoothed networks are weak"
    if lost := sum(one.non_finite for one in result.found):
        yield f"{lost} noisy images had logits that are NaN or infinite; they are of no class"
