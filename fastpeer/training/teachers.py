"""Frozen teachers: finds their weights, what their records say of them, and builds them."""

import logging
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from fastpeer.checkpoint import load_state
from fastpeer.config import TeacherConfig, teacher_flag, teacher_words
from fastpeer.errors import UserError
from fastpeer.links import student_weights
from fastpeer.manifest import checked_sha256
from fastpeer.methods import build_table, default_loss, method_names
from fastpeer.models import build_model
from fastpeer.models.weight_facts import recorded_facts
from fastpeer.models.weights import (
    load_weights,
    recorded_network,
    recorded_normalization,
    report_normalization,
)
from fastpeer.run_folder import RunFolder, enclosing_run, network_name, one_of_its_runs

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Teacher:
    """What is known about a frozen network before it is built.

    Attributes:
        role: teacher or natural_teacher.
        network: its name, as `build_model` takes it.
        mean, std: its normalisation of the images; empty: none.
        weights: the weight file.
        sha256: the file's checksum.
        key: which set of weights in the file; empty: the usual one.
        classes: number of classes it was trained on, if known.
        size: height and width of the images it was trained on, if known.
        clean_accuracy: accuracy in % on clean images that its run recorded for these weights, if any.
        method: name of the method that trained it, if recorded.
        robust: whether that was against an attack; None: not known.
    """

    role: str
    network: str
    mean: tuple[float, ...]
    std: tuple[float, ...]
    weights: Path
    sha256: str
    key: str = ""
    classes: int | None = None
    size: tuple[int, int] | None = None
    clean_accuracy: float | None = None
    method: str = ""
    robust: bool | None = None

    @property
    def title(self) -> str:
        """The role as messages name it: teacher or natural teacher."""
        return teacher_words(self.role)

    @property
    def flag(self) -> str:
        """The flag that names its weights, and the prefix of the flags of its settings."""
        return teacher_flag(self.role)


def find_teacher(role: str, config: TeacherConfig, student: str, method: str) -> Teacher:
    """Find a teacher's weights, and what is known about them.

    Args:
        role: teacher or natural_teacher.
        config: its settings; what they leave out is read from the run that the weights belong to, or from the
            file itself.
        student: name of the trained network, which is assumed for a file that neither belongs to a run nor
            records its network.
        method: name of the method that learns from it, for messages.

    Raises:
        UserError: no weights are named, or they do not exist.
    """
    title, flag = teacher_words(role), teacher_flag(role)
    if not config.weights:
        raise UserError(
            f"the method {method} needs a {title}: {flag} PATH (a run, a checkpoint or a file with weights)"
        )
    weights = _weights_file(Path(config.weights), flag)
    run = enclosing_run(weights)
    if run is None:
        facts = _facts_of_file(weights, config, student, flag)
    else:
        facts = _facts_of_run(run, weights, config)
    if config.mean:
        facts |= {"mean": config.mean, "std": config.std}
    else:
        source = "file" if run is None else "run"
        report_normalization(f"the {title} {weights}", (facts["mean"], facts["std"]), source)
    sha256 = checked_sha256(weights)
    teacher = Teacher(role=role, weights=weights.absolute(), sha256=sha256, key=config.weights_key, **facts)
    _warn_of_other_kind(teacher, method)
    return teacher


def build_teacher(teacher: Teacher, classes: int, size: tuple[int, int]) -> nn.Module:
    """Build a teacher on the CPU in float64, in eval mode, without gradients for its weights.

    Args:
        teacher: from `find_teacher`.
        classes: number of classes of the training's data set.
        size: height and width of that data set's images.

    Raises:
        UserError: it was trained on another number of classes or another size, or its weights do not fit its
            network.
    """
    if teacher.classes not in (None, classes):
        raise UserError(
            f"the {teacher.title} must be for {classes} classes, got {teacher.classes} classes"
            f" ({teacher.weights}): name another with {teacher.flag}"
        )
    if teacher.size not in (None, size):
        raise UserError(
            f"the {teacher.title} must be trained on images of {_format_size(size)}, got"
            f" {_format_size(teacher.size)} ({teacher.weights}): name another with {teacher.flag}"
        )
    # Its random weights are overwritten below: drawing them must not advance the run's generator.
    with torch.random.fork_rng(devices=[]):
        network = build_model(teacher.network, classes, size, mean=teacher.mean, std=teacher.std)
    # In float64, so that the file's values are not rounded before they reach the run's own precision.
    network.double()
    load_weights(network, teacher.weights, teacher.key, f"{teacher.flag}.weights-key")
    return network.eval().requires_grad_(False)


def _weights_file(path: Path, flag: str) -> Path:
    """Return the student's weights in a run (best, else last) or checkpoint, or the file itself."""
    run = RunFolder(path)
    if not run.exists:
        file = student_weights(path)
        if file is None:
            expected = "neither a run, nor a checkpoint, nor a file with weights"
            raise UserError(f"{flag} {path}: {expected}{one_of_its_runs(path)}")
        return file
    files = [run.checkpoint(name) / "student.safetensors" for name in ("best", "last")]
    found = next((file for file in files if file.is_file()), None)
    if found is None:
        raise UserError(f"{flag} {path}: this run holds no checkpoint yet")
    return found


def _facts_of_run(run: RunFolder, weights: Path, config: TeacherConfig) -> dict[str, Any]:
    settings, data = run.read_config(), run.read_facts()["data"]
    # Runs of older versions recorded neither size nor classes.
    size = data.get("size")
    return {
        "network": config.network or network_name(settings, weights),
        "mean": settings.model.mean,
        "std": settings.model.std,
        "classes": data.get("classes"),
        "size": None if size is None else (size[0], size[1]),
        "clean_accuracy": _recorded_accuracy(weights),
        "method": settings.method,
        "robust": settings.table.seeks_robustness and settings.attack.epsilon > 0,
    }


def _facts_of_file(weights: Path, config: TeacherConfig, student: str, flag: str) -> dict[str, Any]:
    recorded = recorded_facts(weights)
    network = config.network or recorded_network(weights, f"{flag}.network", student) or student
    # What was set is not looked for: the file's own may be for pixels from 0 to 255, which is refused.
    found = None if config.mean else recorded_normalization(weights, network, config.weights_key)
    mean, std = found or ((), ())
    size = (recorded.size[0], recorded.size[1]) if len(recorded.size) == 2 else None
    return {
        "network": network,
        "mean": mean,
        "std": std,
        "classes": recorded.classes or None,
        "size": size,
        "method": recorded.method,
        "robust": _seeks_robustness(recorded.method),
    }


def _seeks_robustness(method: str) -> bool | None:
    """Tell whether a recorded method trains against an attack; None for a method of somebody's own.

    Such a method is not imported because a file says so: importing runs code.
    """
    if method not in method_names():
        return None
    return build_table(method, default_loss(method)).seeks_robustness


def _warn_of_other_kind(teacher: Teacher, method: str) -> None:
    """Warn if the record says that a robust teacher was trained without an attack, or the reverse."""
    wanted = teacher.role == "teacher"
    if teacher.robust in (None, wanted):
        return
    log.warning(
        "the %s %s was trained %s an attack (method %s), as its record says: %s learns from one trained %s an"
        " attack; name another with %s",
        teacher.title, teacher.weights, "without" if wanted else "against", teacher.method, method,
        "against" if wanted else "without", teacher.flag,
    )  # fmt: skip


def _recorded_accuracy(weights: Path) -> float | None:
    """Return the clean accuracy in a checkpoint's state; None for other files and older states."""
    try:
        state = load_state(weights.parent)
    except UserError:
        return None
    # The checkpoints best and best-swa record their own accuracies ("selected"), last those of each network.
    summary_names = {"student": "last", "swa": "swa"}
    entry = state.get("selected") if weights.stem == "student" else None
    entry = entry or state.get("summary", {}).get(summary_names.get(weights.stem))
    accuracy = entry.get("clean") if isinstance(entry, Mapping) else None
    return float(accuracy) if isinstance(accuracy, (int, float)) else None


def _format_size(size: tuple[int, int] | None) -> str:
    return "unknown size" if size is None else f"{size[0]}×{size[1]}"
