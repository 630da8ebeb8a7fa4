"""Networks that are trained already: where their weights lie, and whether they do what is said of them."""

import logging
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from fastpeer.checkpoint import load_state
from fastpeer.config import TeacherConfig, teacher_flag, teacher_words
from fastpeer.data.dataset import file_sha256
from fastpeer.data.stream import EvaluationStream, spread
from fastpeer.errors import UserError
from fastpeer.evaluation.accuracy import Evaluator
from fastpeer.evaluation.attacks import no_attack
from fastpeer.models import build_model
from fastpeer.models.weights import load_weights, recorded_normalization
from fastpeer.run_folder import RunFolder, network_name, run_around

log = logging.getLogger(__name__)
IMAGES = 1000
"""On so many a teacher's accuracy is looked at."""
FAR_BELOW = 5.0
"""Percentage points that a teacher may miss of its own record without a warning."""


@dataclass(frozen=True)
class Teacher:
    """What is known of a frozen network before it is built.

    Attributes:
        role: teacher or natural_teacher.
        network: its name, as `build_model` takes it.
        mean, std: what it normalises images by; empty: it does not.
        weights: the file.
        sha256: of the file.
        classes: how many it was trained on, if known.
        size: height and width of the images that it was trained on, if known.
        clean: accuracy in % on clean images that its run recorded for these weights, if any.
    """

    role: str
    network: str
    mean: tuple[float, ...]
    std: tuple[float, ...]
    weights: Path
    sha256: str
    classes: int | None = None
    size: tuple[int, int] | None = None
    clean: float | None = None

    @property
    def words(self) -> str:
        """Its role, for people."""
        return teacher_words(self.role)

    @property
    def flag(self) -> str:
        """The flag that names its weights; its settings have it as prefix."""
        return teacher_flag(self.role)


def find_teacher(role: str, config: TeacherConfig, student: str, method: str) -> Teacher:
    """Find a teacher's weights, and what they say of themselves.

    Args:
        role: teacher or natural_teacher.
        config: its settings; what they leave out is read from the run that the weights lie in, or from the
            file itself.
        student: the network that is trained, which a file outside a run holds unless told otherwise.
        method: that needs it, for the error.

    Raises:
        UserError: no weights are named, or there are none.
    """
    words, flag = teacher_words(role), teacher_flag(role)
    if not config.weights:
        raise UserError(
            f"the method {method} needs a {words}: {flag} PATH (a run, a checkpoint or a file with weights)"
        )
    weights = _weights_file(Path(config.weights), flag)
    run = run_around(weights)
    known = _without_a_run(weights, config, student) if run is None else _of_run(run, weights, config)
    if config.mean:
        known |= {"mean": config.mean, "std": config.std}
    return Teacher(role=role, weights=weights.absolute(), sha256=file_sha256(weights), **known)


def build_teacher(teacher: Teacher, classes: int, size: tuple[int, int]) -> nn.Module:
    """Build a teacher in float64, in eval mode, with weights that want no gradient; place it as needed.

    Args:
        teacher: from `find_teacher`.
        classes: of the data set it is to teach on.
        size: height and width of that data set's images.

    Raises:
        UserError: it was trained on other classes or another size, or its weights do not fit its network.
    """
    if teacher.classes not in (None, classes):
        raise UserError(
            f"the {teacher.words} {teacher.weights} knows {teacher.classes} classes, this data set has"
            f" {classes}: name another with {teacher.flag}"
        )
    if teacher.size not in (None, size):
        raise UserError(
            f"the {teacher.words} {teacher.weights} was trained on images of {_by(teacher.size)}, this data"
            f" set has {_by(size)}: name another with {teacher.flag}"
        )
    with torch.random.fork_rng(devices=[]):
        network = build_model(teacher.network, classes, size, mean=teacher.mean, std=teacher.std)
    network.double()
    load_weights(network, teacher.weights)
    return network.eval().requires_grad_(False)


def check_accuracy(teacher: Teacher, network: nn.Module, stream: EvaluationStream, classes: int) -> float:
    """Classify some clean images, and log how well that goes: a warning, where it is far below its record.

    Args:
        teacher: what `network` was built from.
        network: in the dtype of the stream's images, on their device.
        stream: images that it was not trained on; up to 1000, evenly spread, are taken.
        classes: of the data set.

    Returns:
        Accuracy in %.

    Raises:
        UserError: it is no better than guessing, as far as so many images tell.
    """
    some = replace(stream, indices=spread(stream.indices, IMAGES))
    right = Evaluator({teacher.role: network}, no_attack()).correct(some)[teacher.role]
    correct, images = int(right.sum()), len(right)
    accuracy, low, high = _accuracy(correct, images)
    found = (
        f"the {teacher.words} {teacher.weights} classifies {accuracy:.1f} % of {images} clean images right"
    )
    if low <= 100 / classes:
        raise UserError(
            f"{found}, guessing {100 / classes:.1f} %: are its network and its normalisation right"
            f" ({teacher.flag}.network, {teacher.flag}.mean, {teacher.flag}.std)?"
        )
    _log_beside_its_record(teacher, found, accuracy, high)
    return accuracy


def _weights_file(path: Path, flag: str) -> Path:
    run = RunFolder(path)
    if not run.exists:
        file = path / "student.safetensors" if path.is_dir() else path
        if not file.is_file():
            raise UserError(f"{flag} {path}: neither a run, nor a checkpoint, nor a file with weights")
        return file
    files = [run.checkpoints / name / "student.safetensors" for name in ("best", "last")]
    found = next((file for file in files if file.is_file()), None)
    if found is None:
        raise UserError(f"{flag} {path}: this run holds no checkpoint yet")
    return found


def _of_run(run: RunFolder, weights: Path, config: TeacherConfig) -> dict[str, Any]:
    settings, data = run.read_config(), run.read_facts()["data"]
    size = data.get("size")
    return {
        "network": config.network or network_name(settings, weights),
        "mean": settings.model.mean,
        "std": settings.model.std,
        "classes": data.get("classes"),
        "size": None if size is None else (size[0], size[1]),
        "clean": _recorded_accuracy(weights),
    }


def _without_a_run(weights: Path, config: TeacherConfig, student: str) -> dict[str, Any]:
    network = config.network or student
    mean, std = recorded_normalization(weights, network) or ((), ())
    return {"network": network, "mean": mean, "std": std}


def _recorded_accuracy(weights: Path) -> float | None:
    """Return what a checkpoint's state says of its student; other files, and older states, say nothing."""
    try:
        state = load_state(weights.parent)
    except UserError:
        return None
    names = {"student": "last", "swa": "swa"}
    summary = state.get("summary", {})
    entry = state.get("selected") if weights.stem == "student" else None
    entry = entry or summary.get(names.get(weights.stem))
    found = entry.get("clean") if isinstance(entry, Mapping) else None
    return float(found) if isinstance(found, (int, float)) else None


def _accuracy(correct: int, images: int) -> tuple[float, float, float]:
    """Accuracy in %, with the ends of its 95 % interval."""
    # Takes a while, which runs without a teacher need not wait for.
    from scipy.stats import binomtest

    bounds = binomtest(correct, images).proportion_ci(method="wilson")
    return 100 * correct / images, 100 * bounds.low, 100 * bounds.high


def _log_beside_its_record(teacher: Teacher, found: str, accuracy: float, high: float) -> None:
    if teacher.clean is None:
        log.info(found)
    elif teacher.clean <= max(high, accuracy + FAR_BELOW):
        log.info("%s (its run recorded %.1f %%)", found, teacher.clean)
    else:
        log.warning(
            "%s, but its run recorded %.1f %%: is this the data set it was trained on, and are %s.mean and"
            " %s.std right?", found, teacher.clean, teacher.flag, teacher.flag,
        )  # fmt: skip


def _by(size: tuple[int, int] | None) -> str:
    return "unknown size" if size is None else f"{size[0]}×{size[1]}"
