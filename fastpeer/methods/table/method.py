"""A method as a whole."""

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, fields

from fastpeer.methods.table.attacks import Attack
from fastpeer.methods.table.forwards import Forward, Network
from fastpeer.methods.table.terms import Balance, InputGradientDistance, Term, forwards_of


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
                raise ValueError(f"{entry.name} needs {_range(low)}, not {value}")


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
        """Networks that the table speaks of and that are not trained: its teachers."""
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
