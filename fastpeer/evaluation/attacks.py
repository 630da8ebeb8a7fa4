"""The attacks of `fastpeer eval`, by name. A new attack is a `LabelAttack` and a line in `ATTACKS`."""

import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Protocol

from torch import Tensor

from fastpeer.config import AutoAttackWay, Norm
from fastpeer.data.counter import generator
from fastpeer.data.stream import Batch
from fastpeer.errors import UserError
from fastpeer.kernels.choice import Kernels
from fastpeer.step.options import Options
from fastpeer.suggestions import did_you_mean
from fastpeer.victims.interface import Victim
from fastpeer.victims.pgd import pgd, uniform_start


@dataclass(frozen=True)
class LabelAttack:
    """An attack on labelled images, in two parts: only `ascend` can be captured in a CUDA graph.

    Attributes:
        start: returns the first iterate (B, 3, H, W) for a batch and the batch's number; may draw random
            numbers.
        ascend: returns the last iterate (B, 3, H, W) for images (B, 3, H, W), labels int64 (B,) and the first
            iterate; reads no value back to the host.
    """

    start: Callable[[Batch, int], Tensor]
    ascend: Callable[[Tensor, Tensor, Tensor], Tensor]

    def perturb(self, batch: Batch, number: int) -> Tensor:
        """Return the adversarial images (B, 3, H, W) of a batch, whose number seeds the random start."""
        return self.ascend(batch.images, batch.labels, self.start(batch, number))


def label_pgd(
    victim: Victim,
    kernels: Kernels,
    epsilon: float,
    step_size: float,
    steps: int,
    seed: int,
    purpose: str = "evaluation",
    norm: Norm = "linf",
) -> LabelAttack:
    """Return PGD on the cross-entropy with the labels, from a uniform unclamped start in the ε-ball.

    Args:
        victim: the attacked network; refreshed by the caller.
        kernels: for the update of the iterate.
        epsilon: radius of the ball, for images in [0, 1].
        step_size: how far a step moves each pixel, or in L2 each image.
        steps: number of steps.
        seed: of the random starts.
        purpose: each purpose has random starts of its own, so that the final evaluation does not use those
            that the epoch was selected on.
        norm: of the ball.
    """

    def start(batch: Batch, number: int) -> Tensor:
        noise = generator(batch.images.device, seed, f"{purpose} start", number)
        return uniform_start(batch.images, epsilon, noise, norm)

    def ascend(images: Tensor, labels: Tensor, first: Tensor) -> Tensor:
        return pgd(
            victim, images, labels, first, norm=norm, epsilon=epsilon, step_size=step_size, steps=steps,
            kernels=kernels,
        )  # fmt: skip

    return LabelAttack(start, ascend)


def fgsm(victim: Victim, kernels: Kernels, epsilon: float, norm: Norm = "linf") -> LabelAttack:
    """Return the fast gradient sign method (Goodfellow et al. 2015): one step of ε from the clean image.

    In L2 it goes along the normalised gradient: the fast gradient method.
    """

    def ascend(images: Tensor, labels: Tensor, first: Tensor) -> Tensor:
        return pgd(
            victim, images, labels, first, norm=norm, epsilon=epsilon, step_size=epsilon, steps=1,
            kernels=kernels,
        )  # fmt: skip

    return LabelAttack(_clean_start, ascend)


def no_attack() -> LabelAttack:
    """Return the attack that leaves the images unchanged."""
    return LabelAttack(_clean_start, lambda images, labels, first: first)


def _clean_start(batch: Batch, number: int) -> Tensor:
    return batch.images


@dataclass(frozen=True)
class AttackSettings:
    """Settings that all attacks of an evaluation share; ε and step size are for images in [0, 1]."""

    epsilon: float
    step_size: float
    classes: int
    seed: int
    batch_size: int
    options: Options
    """Engine parts that run the attacks."""
    norm: Norm = "linf"
    """Of the ball."""
    autoattack: AutoAttackWay = "fast"


class Progress(Protocol):
    """Is told how far an evaluation is."""

    def __call__(self, done: int, stage: str = "") -> None:
        """Take the number of images evaluated so far, and which part of the attack runs, if it has parts."""


Builder = Callable[[Callable[[], Victim], Kernels, AttackSettings, int], LabelAttack]
"""Builds an attack from a function that prepares the victim, kernels, settings and the name's number."""

AUTOATTACK = "aa"
AUTOATTACKS = (AUTOATTACK, "aa-few-classes")
"""Not in `ATTACKS`: they have a loop over batches of their own (`fastpeer.evaluation.autoattack`)."""
ATTACKS: Mapping[str, Builder] = {
    "clean": lambda victim, kernels, settings, number: no_attack(),
    "fgsm": lambda victim, kernels, settings, number: fgsm(
        victim(), kernels, settings.epsilon, settings.norm
    ),
    "pgdN": lambda victim, kernels, settings, number: label_pgd(
        victim(), kernels, settings.epsilon, settings.step_size, number, settings.seed, norm=settings.norm
    ),
}
"""The attacks of `fastpeer eval --attacks`, by name; N is a number of at least 1."""


def build_attack(
    name: str, victim: Callable[[], Victim], kernels: Kernels, settings: AttackSettings
) -> LabelAttack:
    """Build an attack of `ATTACKS`, given a name that `parse_attacks` has accepted."""
    kind, number = _split(name)
    return ATTACKS[kind](victim, kernels, settings, number)


def parse_attacks(text: str) -> list[str]:
    """Split "clean,fgsm,pgd20,aa" into known names.

    Raises:
        UserError: an unknown name, or no name at all.
    """
    names = [name.strip().lower() for name in text.split(",") if name.strip()]
    for name in names:
        if name not in AUTOATTACKS and _split(name)[0] not in ATTACKS:
            near = did_you_mean(name, ("clean", "fgsm", "pgd10", "pgd20", *AUTOATTACKS))
            raise UserError(f"unknown attack {name}; {near} (pgdN takes N steps)")
    if not names:
        raise UserError("--attacks must name at least one attack, such as clean,fgsm,pgd20,aa")
    return list(dict.fromkeys(names))


def fewest_steps(names: Iterable[str]) -> int:
    """Return the number of steps of the shortest PGD among attacks' names; 0: there is none."""
    return min((number for kind, number in map(_split, names) if kind == "pgdN"), default=0)


def _split(name: str) -> tuple[str, int]:
    """Split a name into its key in `ATTACKS` and its number: pgd20 is (pgdN, 20), clean is (clean, 0)."""
    # Of at most nine digits: int() refuses thousands of them.
    match = re.fullmatch(r"([a-z]+)([1-9][0-9]{0,8})", name)
    return (f"{match[1]}N", int(match[2])) if match else (name, 0)
