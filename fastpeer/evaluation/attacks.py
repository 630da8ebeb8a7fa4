"""The attacks that an evaluation may name. For another one: a `LabelAttack`, and a line in `ATTACKS`."""

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from torch import Tensor

from fastpeer.data.counter import generator
from fastpeer.data.stream import Batch
from fastpeer.errors import UserError
from fastpeer.kernels.choice import Kernels
from fastpeer.step.options import Options
from fastpeer.suggestions import nearest
from fastpeer.victims.interface import Victim
from fastpeer.victims.pgd import pgd, uniform_start


@dataclass(frozen=True)
class LabelAttack:
    """An attack on labelled images.

    Attributes:
        start: its first iterate (B, 3, H, W), of a batch and the batch's number.
        climb: its last one, of images (B, 3, H, W), labels int64 (B,) and the first one; a function of
            tensors that could be captured in a CUDA graph.
    """

    start: Callable[[Batch, int], Tensor]
    climb: Callable[[Tensor, Tensor, Tensor], Tensor]

    def perturb(self, batch: Batch, number: int) -> Tensor:
        """Return the adversarial images of a batch; the number is the batch's."""
        return self.climb(batch.images, batch.labels, self.start(batch, number))


def label_pgd(
    victim: Victim,
    kernels: Kernels,
    epsilon: float,
    step_size: float,
    steps: int,
    seed: int,
    purpose: str = "evaluation",
) -> LabelAttack:
    """Return PGD on the cross-entropy with the labels, from a uniform unclamped start in the ball.

    Each `purpose` has random starts of its own: an epoch is not judged by those it was selected on.
    """

    def start(batch: Batch, number: int) -> Tensor:
        noise = generator(batch.images.device, seed, f"{purpose} start", number)
        return uniform_start(batch.images, epsilon, noise)

    def climb(images: Tensor, labels: Tensor, first: Tensor) -> Tensor:
        return pgd(
            victim, images, labels, first, epsilon=epsilon, step_size=step_size, steps=steps, kernels=kernels
        )

    return LabelAttack(start, climb)


def fgsm(victim: Victim, kernels: Kernels, epsilon: float) -> LabelAttack:
    """Return the fast gradient sign method: one step of ε from the image itself."""

    def climb(images: Tensor, labels: Tensor, first: Tensor) -> Tensor:
        return pgd(
            victim, images, labels, first, epsilon=epsilon, step_size=epsilon, steps=1, kernels=kernels
        )

    return LabelAttack(_as_they_are, climb)


def no_attack() -> LabelAttack:
    """Return what leaves the images as they are."""
    return LabelAttack(_as_they_are, lambda images, labels, first: first)


def _as_they_are(batch: Batch, number: int) -> Tensor:
    return batch.images


@dataclass(frozen=True)
class AttackSettings:
    """What all attacks of an evaluation have in common."""

    epsilon: float
    step_size: float
    classes: int
    seed: int
    batch_size: int
    options: Options
    """Parts of the engine that attack the network, in all but AutoAttack."""


Builder = Callable[[Callable[[], Victim], Kernels, AttackSettings, int], LabelAttack]
"""Builds an attack from what prepares the victim, the kernels, the settings, and the number in its name."""

AUTOATTACK = "aa"
"""Not among `ATTACKS`: it attacks in turns of its own (`fastpeer.evaluation.autoattack`)."""
ATTACKS: Mapping[str, Builder] = {
    "clean": lambda victim, kernels, settings, number: no_attack(),
    "fgsm": lambda victim, kernels, settings, number: fgsm(victim(), kernels, settings.epsilon),
    "pgdN": lambda victim, kernels, settings, number: label_pgd(
        victim(), kernels, settings.epsilon, settings.step_size, number, settings.seed
    ),
}
"""What `fastpeer eval --attacks` knows, by name; N is a number from 1 on."""


def build_attack(
    name: str, victim: Callable[[], Victim], kernels: Kernels, settings: AttackSettings
) -> LabelAttack:
    """Build one of `ATTACKS`; its name is one that `parse_attacks` has let through."""
    word, number = _split(name)
    return ATTACKS[word](victim, kernels, settings, number)


def parse_attacks(text: str) -> list[str]:
    """Split "clean,fgsm,pgd20,aa" into known names.

    Raises:
        UserError: a name that is not known, or none at all.
    """
    names = [name.strip().lower() for name in text.split(",") if name.strip()]
    for name in names:
        if name != AUTOATTACK and _split(name)[0] not in ATTACKS:
            known = nearest(name, ("clean", "fgsm", "pgd10", "pgd20", AUTOATTACK))
            raise UserError(f"unknown attack {name}: did you mean {known}? (pgdN takes N steps)")
    if not names:
        raise UserError("--attacks names none: try clean,fgsm,pgd20,aa")
    return list(dict.fromkeys(names))


def _split(name: str) -> tuple[str, int]:
    """Return the name as `ATTACKS` has it, and the number in it; 0: none."""
    found = re.fullmatch(r"([a-z]+)([1-9]\d*)", name)
    return (f"{found[1]}N", int(found[2])) if found else (name, 0)
