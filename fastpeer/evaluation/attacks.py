"""The attacks of an evaluation: clean, fgsm, pgdN, and the name of AutoAttack."""

import re
from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor

from fastpeer.config.suggestions import nearest
from fastpeer.data.counter import generator
from fastpeer.data.stream import Batch
from fastpeer.errors import UserError
from fastpeer.kernels.choice import Kernels
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

    def __call__(self, batch: Batch, number: int) -> Tensor:
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


def parse_attacks(text: str) -> list[str]:
    """Split "clean,fgsm,pgd20,aa" into known names.

    Raises:
        UserError: a name that is not known, or none at all.
    """
    names = [name.strip().lower() for name in text.split(",") if name.strip()]
    for name in names:
        if name not in ("clean", "fgsm", "aa") and not re.fullmatch(r"pgd[1-9]\d*", name):
            known = nearest(name, ("clean", "fgsm", "pgd10", "pgd20", "aa"))
            raise UserError(f"unknown attack {name}: did you mean {known}? (pgdN takes N steps)")
    if not names:
        raise UserError("--attacks names none: try clean,fgsm,pgd20,aa")
    return list(dict.fromkeys(names))
