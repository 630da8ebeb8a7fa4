"""The vocabulary of a method's table: who learns, who is attacked, what is run, what is minimised."""

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, fields
from typing import Literal

from fastpeer.kernels.terms import (
    Confidence,
    CrossEntropy,
    Divergence,
    KernelTerm,
    LogitDistance,
    Reduction,
)

__all__ = [
    "LABELS",
    "Attack",
    "Balance",
    "BatchNormMode",
    "Confidence",
    "CrossEntropy",
    "Divergence",
    "Forward",
    "InputGradientDistance",
    "Later",
    "LogitDistance",
    "LossSettings",
    "Method",
    "Network",
    "Noise",
    "Reduction",
    "Term",
]


Network = Literal["student", "peer", "teacher", "natural_teacher"]
"""The student is what is to become robust. A peer learns beside it; teachers are frozen: the robust one,
and the one that was trained without an attack."""


@dataclass(frozen=True)
class Forward:
    """A network on the images of a batch; terms are written in its logits.

    A network that is trained runs in train mode, a frozen one in eval mode and without a gradient.

    Attributes:
        network: which.
        images: "clean", or the name of one of the method's attacks.
    """

    network: Network
    images: str


LABELS: Literal["labels"] = "labels"
Noise = Literal["gaussian", "uniform", "none"]
BatchNormMode = Literal["eval", "train"]


@dataclass(frozen=True)
class Attack:
    """PGD within a ball; its norm and radius, step size and number of steps are settings of the run.

    It climbs KL(p ‖ V(x̃)), V being the victim. Attacks of released codes differ in p, the start and the
    mode of the victim's BatchNorm.

    Attributes:
        victim: whose examples are made.
        away_from: where p comes from. `LABELS`: one-hot, so that the cross-entropy is climbed. A forward on
            clean images: the softmax of that network's logits in eval mode, fixed during the attack. A
            forward on the attack's own images: p = N(x̃) moves, and the gradient counts what that does.
        start: the noise that the images start from; gaussian has the standard deviation
            `attack.start_std`, uniform fills the ball.
        clamped: the start is brought back to [0, 1] before the first gradient.
        batchnorm: mode of the victim during the attack. In train mode each of its steps moves the running
            statistics.
    """

    victim: Network
    away_from: Forward | Literal["labels"]
    start: Noise
    clamped: bool = False
    batchnorm: BatchNormMode = "eval"

    def moves(self, images: str) -> bool:
        """Whether p moves with the attack's own images, which are called so."""
        return isinstance(self.away_from, Forward) and self.away_from.images == images


@dataclass(frozen=True)
class InputGradientDistance:
    """weight · ‖∇ₓ H(y, prediction) − ∇ₓ H(y, teacher)‖₂ / B.

    Both entropies are means over the batch of B samples, the norm is that of the whole batch's gradient.
    No kernel holds this term: it needs a second derivative. Its forward is run by itself, uncompiled.
    """

    prediction: Forward
    teacher: Network
    weight: float


@dataclass(frozen=True)
class Balance:
    """Weights of two divergences that follow their progress, 1 − w and w (Zhao et al., MTARD).

    r = value / value at the first step, for each; w ← w − rate·(w − r₂ / (r₁ + r₂)) in every step, before
    the losses are weighted by it; w starts at 1/2.

    Attributes:
        terms: names of the two; their own weights multiply these.
        rate: as long as the learning rate is what it was at first; it falls with it.
        offset: added to the target's probabilities within the logarithm, for these values alone.
    """

    terms: tuple[str, str]
    rate: float
    offset: float


Term = KernelTerm[Forward] | InputGradientDistance


def forwards_of(term: Term) -> tuple[Forward, ...]:
    """Return the forwards that a term reads: its prediction, its target, its sample weight's."""
    if isinstance(term, InputGradientDistance):
        return (term.prediction,)
    ends = (term.prediction,) if isinstance(term, CrossEntropy) else (term.prediction, term.target)
    return (*ends, term.sample_weight.forward) if isinstance(term.sample_weight, Confidence) else ends


@dataclass(frozen=True, kw_only=True)
class LossSettings:
    """Settings of a method's own: each method's file derives its `Loss` from this.

    Raises:
        ValueError: a number is not finite, or a temperature not above 0.
    """

    def __post_init__(self) -> None:
        for entry in fields(self):
            value = getattr(self, entry.name)
            low = 0.0 if entry.name.endswith("temperature") else -math.inf
            if isinstance(value, float) and not low < value < math.inf:
                raise ValueError(f"{entry.name} must be {_range(low)}, got {value}")


@dataclass(frozen=True)
class Method:
    """A method's table; the engine does the rest.

    Attributes:
        trained: networks with an optimizer; the student is the one that is evaluated and averaged.
        forwards: train-mode passes of trained networks, in the order of the original code, which is that in
            which BatchNorm sees them. One that stands here twice is computed once, but BatchNorm sees it
            twice.
        terms: what is added up and minimised, by the name the logs use.
        attacks: by the name that forwards know their images by.
        afterwards: train-mode passes after the weights were updated, for BatchNorm's statistics alone.
        balance: of the weights of two terms.
        later: the table that takes this one's place in the course of the training.
    """

    trained: tuple[Network, ...]
    forwards: tuple[Forward, ...]
    terms: Mapping[str, Term]
    attacks: Mapping[str, Attack] = field(default_factory=dict)
    afterwards: tuple[Forward, ...] = ()
    balance: Balance | None = None
    later: "Later | None" = None

    @property
    def frozen(self) -> tuple[Network, ...]:
        """Networks that the table uses but does not train: its teachers."""
        return tuple(name for name in dict.fromkeys(self._networks()) if name not in self.trained)

    @property
    def seeks_robustness(self) -> bool:
        """Whether a student is the better, the more attacks it withstands: not in natural training."""
        gradients = any(isinstance(term, InputGradientDistance) for term in self.terms.values())
        return bool(self.attacks) or gradients

    def at(self, epoch: int) -> "Method":
        """Return the table of an epoch, counted from 0."""
        if self.later is None or epoch < self.later.epoch:
            return self
        return self.later.method.at(epoch)

    def _networks(self) -> Iterator[Network]:
        for attack in self.attacks.values():
            yield attack.victim
            if isinstance(attack.away_from, Forward):
                yield attack.away_from.network
        for term in self.terms.values():
            yield from _networks_of(term)
        if self.later is not None:
            yield from self.later.method._networks()


@dataclass(frozen=True)
class Later:
    """From `epoch` on, counted from 0, `method` is the table."""

    epoch: int
    method: Method


def _range(low: float) -> str:
    return "a finite number" if low < 0 else "more than 0"


def _networks_of(term: Term) -> Iterator[Network]:
    yield from (forward.network for forward in forwards_of(term))
    if isinstance(term, InputGradientDistance):
        yield term.teacher
