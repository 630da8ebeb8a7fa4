"""What a frozen teacher can do, measured before the training: accuracies, and the order of its classes."""

import logging
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from fastpeer.config import AttackConfig, format_fraction
from fastpeer.data.stream import Batch, EvaluationStream
from fastpeer.errors import UserError
from fastpeer.evaluation.attacks import LabelAttack, label_pgd, no_attack
from fastpeer.evaluation.results import wilson_interval
from fastpeer.kernels.choice import torch_kernels
from fastpeer.training.teachers import Teacher
from fastpeer.victims.autograd import AutogradVictim
from fastpeer.victims.pgd import evaluating

log = logging.getLogger(__name__)
CHECKED_IMAGES = 1000
"""Number of images that a teacher's accuracy is checked on."""
ATTACKED_IMAGES = 96
"""Number of images that are attacked: with 5 steps, about as much work as the check on clean images. Not 100:
every tenth or hundredth image may be of the same class."""
STEPS = 5
"""Steps of PGD on them: a network that was trained naturally withstands none of them."""
TOLERANCE = 5.0
"""Percentage points that a teacher may stay below its recorded accuracy without a warning."""
BARELY = 2.0
"""Times the accuracy of guessing, below which a teacher is hardly meant."""
FRAGILE = 0.2
"""Share of its clean accuracy that a robust teacher keeps at least under attack."""
CHANCE = 1e-3
"""Probability, up to which the order of a teacher's classes is not taken for chance."""
NEVER = 0.1
"""Share of a class's images that are right by accident where its output stands for another class."""
LINKED = 0.2
"""Share of moved classes whose outputs' own classes are seen to be moved too, at least."""
NAMED_PAIRS = 5
"""Pairs of classes that a warning of another order names."""


@dataclass(frozen=True)
class TeacherAccuracy:
    """What was measured of a teacher.

    Attributes:
        clean: accuracy in % on clean images.
        images: their number.
        robust: accuracy in % under the attack.
        attacked: number of attacked images.
        attack: name of the attack.
        norm, epsilon, step_size: of the attack, for images in [0, 1].
    """

    clean: float
    images: int
    robust: float
    attacked: int
    attack: str
    norm: str
    epsilon: float
    step_size: float

    def facts(self) -> dict[str, Any]:
        """Return what run.json keeps of it."""
        return asdict(self)


def check_accuracy(
    teacher: Teacher,
    network: nn.Module,
    stream: EvaluationStream,
    classes: int,
    attack: AttackConfig,
    seed: int,
) -> TeacherAccuracy:
    """Measure and log a teacher's accuracy on clean and on attacked images; warn of what looks wrong.

    A wrong network or normalisation, classes in another order, or a teacher of the wrong kind would otherwise
    only show as a badly trained student.

    Args:
        teacher: what `network` was built from.
        network: in the dtype of the stream's images, on their device.
        stream: images that it was not trained on, of which up to 1000, evenly spread, are used; up to 96 are
            attacked by 5 steps of PGD.
        classes: number of classes.
        attack: its norm, epsilon and step size are used.
        seed: of the attack's random start.

    Raises:
        UserError: on clean images it is not better than guessing, with 95 % confidence.
    """
    labels, predicted = _classify(network, stream.sample(CHECKED_IMAGES), no_attack())
    clean = _Share.of(labels, predicted)
    order = _other_order(labels.numpy(), predicted.numpy(), classes)
    _refuse_guessing(teacher, clean, classes, order)
    attacked = stream.sample(ATTACKED_IMAGES)
    robust = _Share.of(*_classify(network, attacked, _pgd(network, attack, seed)))
    _log_accuracy(teacher, clean, robust, attack)
    if clean.percent < BARELY * 100 / classes:
        log.warning(
            "the %s %s is little better than guessing: check %s.network, %s.mean and %s.std",
            teacher.title, teacher.weights, *[teacher.flag] * 3,
        )  # fmt: skip
    _warn_of_order(teacher, order)
    _warn_of_no_robustness(teacher, clean, robust)
    return TeacherAccuracy(
        clean.percent, clean.images, robust.percent, robust.images, f"pgd{STEPS}", attack.norm,
        attack.epsilon, attack.step_size,
    )  # fmt: skip


@dataclass(frozen=True)
class _Share:
    """An accuracy in %, with the ends of its 95 % Wilson interval, and the number of images."""

    percent: float
    low: float
    high: float
    images: int

    @classmethod
    def of(cls, labels: Tensor, predicted: Tensor) -> "_Share":
        correct, images = int((labels == predicted).sum()), len(labels)
        return cls(100 * correct / images, *wilson_interval(correct, images), images)

    @property
    def on_clean_images(self) -> str:
        return f"{self.percent:.1f} % of {self.images} clean images correctly"


def _refuse_guessing(teacher: Teacher, clean: _Share, classes: int, order: str) -> None:
    if clean.low > 100 / classes:
        return
    raise UserError(
        f"the {teacher.title} {teacher.weights} classifies {clean.on_clean_images}, guessing"
        f" {100 / classes:.1f} %: check its network and normalisation ({teacher.flag}.network,"
        f" {teacher.flag}.mean, {teacher.flag}.std)"
        + (f"; its classes seem to be in another order: {order}" if order else "")
    )


def _log_accuracy(teacher: Teacher, clean: _Share, robust: _Share, attack: AttackConfig) -> None:
    finding = (
        f"the {teacher.title} {teacher.weights} classifies {robust.percent:.1f} % of {robust.images} images"
        f" under PGD-{STEPS} ({attack.norm}, epsilon {format_fraction(attack.epsilon)}) and"
        f" {clean.on_clean_images}"
    )
    recorded = teacher.clean_accuracy
    if recorded is None:
        log.info(finding)
    elif recorded <= max(clean.high, clean.percent + TOLERANCE):
        log.info("%s (its run recorded %.1f %%)", finding, recorded)
    else:
        log.warning(
            "%s, but its run recorded %.1f %%: check the data set, %s.mean and %s.std",
            finding, recorded, teacher.flag, teacher.flag,
        )  # fmt: skip


def _warn_of_order(teacher: Teacher, order: str) -> None:
    if order:
        log.warning(
            "the %s %s seems to have its classes in another order than the data set: %s; put the rows of its"
            " last layer into the data set's order", teacher.title, teacher.weights, order,
        )  # fmt: skip


def _warn_of_no_robustness(teacher: Teacher, clean: _Share, robust: _Share) -> None:
    if teacher.role == "teacher" and robust.high <= FRAGILE * clean.percent:
        log.warning(
            "the teacher %s withstands no attack, and a student learns to be robust from a robust teacher:"
            " name another with %s", teacher.weights, teacher.flag,
        )  # fmt: skip


def _pgd(network: nn.Module, attack: AttackConfig, seed: int) -> LabelAttack:
    # Through plain autograd: folding the teacher for five steps would log once more how it is run.
    victim, kernels = AutogradVictim(network, torch_kernels()), torch_kernels()
    return label_pgd(
        victim, kernels, attack.epsilon, attack.step_size, STEPS, seed, "teacher's accuracy", attack.norm
    )


@torch.no_grad()
def _classify(network: nn.Module, batches: Iterable[Batch], attack: LabelAttack) -> tuple[Tensor, Tensor]:
    """Return labels and predicted classes, int64 (N,) on the CPU; −1 where logits are not finite."""
    labels, predicted = [], []
    with evaluating(network):
        for number, batch in enumerate(batches):
            logits = network(attack.perturb(batch, number))
            finite = logits.isfinite().all(1)
            labels.append(batch.labels.cpu())
            predicted.append(torch.where(finite, logits.argmax(1), -1).cpu())
    return torch.cat(labels), torch.cat(predicted)


def _other_order(labels: np.ndarray, predicted: np.ndarray, classes: int) -> str:
    """Return which classes are taken for which, as words; empty if that may be chance."""
    pairs = permuted_classes(labels, predicted, classes)
    words = [f"images of class {label} are taken for {other}" for label, other in pairs[:NAMED_PAIRS]]
    return ", ".join(words) + (f" and {more} more" if (more := len(pairs) - NAMED_PAIRS) > 0 else "")


def permuted_classes(labels: np.ndarray, predicted: np.ndarray, classes: int) -> list[tuple[int, int]]:
    """Return pairs (class, output that stands for it) if a teacher's outputs are evidently in another order.

    The order that fits one half of the images best is tried on the other half, and the reverse. Only where it
    beats the data set's own order there, by more than chance, some outputs are in another order: a weak
    teacher that mistakes similar classes for each other does not do better in any other on new images.

    Args:
        labels: int64 (N,).
        predicted: int64 (N,); negative: no class.
        classes: number of classes.
    """
    half = np.empty(len(labels), int)
    # Alternating within each class, of which there may be only a few images.
    half[np.argsort(labels, kind="stable")] = np.arange(len(labels)) % 2
    gained = lost = 0
    for tried in (0, 1):
        fitted = half != tried
        order = _clear_order(_confusion(labels[fitted], predicted[fitted], classes))
        moved = ~fitted & (order[labels] != labels)
        gained += int((predicted == order[labels])[moved].sum())
        lost += int((predicted == labels)[moved].sum())
    if not gained or _is_chance(gained, gained + lost):
        return []
    order = _clear_order(_confusion(labels, predicted, classes))
    moved = {label: int(other) for label, other in enumerate(order) if other != label}
    # In a permutation, the class whose output was taken was moved too, even if that is not clear of each. An
    # untrained network takes classes for others that it does not know at all.
    linked = sum(other in moved for other in moved.values())
    return list(moved.items()) if linked >= LINKED * len(moved) else []


def _is_chance(gained: int, moved: int) -> bool:
    """Tell whether a fair coin might have gained as much (a sign test)."""
    # Imported here: scipy.stats takes seconds to import, and a teacher's classes are seldom in another order.
    from scipy.stats import binomtest

    return bool(binomtest(gained, moved, alternative="greater").pvalue > CHANCE)


def _confusion(labels: np.ndarray, predicted: np.ndarray, classes: int) -> np.ndarray:
    """Return how many images of each class (row) are taken for each (column)."""
    known = predicted >= 0
    return np.bincount(labels[known] * classes + predicted[known], minlength=classes**2).reshape(
        classes, classes
    )


def _clear_order(counts: np.ndarray) -> np.ndarray:
    """Return the output that stands for each class, int (classes,), by a confusion matrix.

    It is that of the permutation which makes most images right, where that is clear: at least two images, and
    most of the class, are taken for it, more than of any other class, and hardly any image of either class is
    right. Any other class keeps its own: a weak teacher prefers some classes, but is right at those at times.
    """
    from scipy.optimize import linear_sum_assignment

    own = np.arange(len(counts))
    # Of equally good orders, the one that leaves most classes where they are.
    order = linear_sum_assignment(counts + 0.5 * np.eye(len(counts)), maximize=True)[1]
    taken, images = counts[own, order], counts.sum(1)
    never_right = counts.diagonal() <= NEVER * images
    clear = (taken >= 2) & (2 * taken > images) & (taken == counts.max(0)[order])
    return np.where(clear & never_right & never_right[order], order, own)
