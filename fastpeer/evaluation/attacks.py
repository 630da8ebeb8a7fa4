"""Attacks on labelled images, with the true labels; `attack_names.py` says how `fastpeer eval` calls them."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Protocol

import torch
from torch import Tensor

from fastpeer.config import AutoAttackWay, Norm
from fastpeer.data.counter import generator
from fastpeer.data.stream import Batch
from fastpeer.kernels.choice import Kernels
from fastpeer.step.options import Options
from fastpeer.victims.compiled import EagerVictim
from fastpeer.victims.interface import Victim
from fastpeer.victims.pgd import pgd, uniform_start

Ascend = Callable[[Tensor, Tensor, Tensor], Tensor]
Record = Callable[[Callable[..., Tensor]], Callable[..., Tensor]]
"""Takes a function of tensors and returns an equivalent one, for instance one that replays a CUDA graph."""

CHUNK = 4
"""Steps between two looks at whether the iterates of a long PGD repeat; a look waits for the device."""
LONG = 50
"""Steps from which on PGD looks for that: shorter ones do not come so far."""


class Start(Protocol):
    """Makes the first iterate of an attack."""

    def __call__(self, batch: Batch, number: int, restart: int = 0) -> Tensor:
        """Return it, (B, 3, H, W), for the batch of this number; it may be random, other at each restart."""


@dataclass(frozen=True)
class LabelAttack:
    """An attack on labelled images, in two parts: only `ascend` can be captured in a CUDA graph.

    Attributes:
        start: returns the first iterate (B, 3, H, W).
        ascend: returns the last iterate (B, 3, H, W) for images (B, 3, H, W), labels int64 (B,) and the first
            iterate; NaN for an image that a gradient of NaN kept from being attacked.
        reads_back: whether `ascend` reads a value back to the host, which no graph can.
    """

    start: Start
    ascend: Ascend
    reads_back: bool = False

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
    record: Record | None = None,
    bounded: bool = True,
) -> LabelAttack:
    """Return PGD on the cross-entropy with the labels, from a uniform unclamped start in the ε-ball.

    Args:
        victim: the attacked network; refreshed by the caller. One that returns another loss's gradient, such
            as `MarginVictim`, makes it PGD on that loss.
        kernels: for the update of the iterate.
        epsilon: radius of the ball, for images in [0, 1].
        step_size: how far a step moves each pixel, or in L2 each image.
        steps: number of steps.
        seed: of the random starts.
        purpose: each purpose has random starts of its own, so that the final evaluation does not use those
            that the epoch was selected on.
        norm: of the ball.
        record: captures parts of a long attack, which then ends where its iterates repeat
            (`_until_repeated`); None: all steps are made.
        bounded: whether the iterates stay in the ball of the start; else they stay in [0, 1] alone.
    """

    def start(batch: Batch, number: int, restart: int = 0) -> Tensor:
        words = f"{purpose} restart {restart} start" if restart else f"{purpose} start"
        noise = generator(batch.images.device, seed, words, number)
        return uniform_start(batch.images, epsilon, noise, norm)

    def climb(images: Tensor, labels: Tensor, first: Tensor, steps: int) -> Tensor:
        radius = epsilon if bounded else _whole_space(images, norm)
        return pgd(
            victim, images, labels, first, norm=norm, epsilon=radius, step_size=step_size, steps=steps,
            kernels=kernels, mark_nan=True,
        )  # fmt: skip

    if record is None or steps < LONG:
        return LabelAttack(start, partial(climb, steps=steps))
    return LabelAttack(start, _until_repeated(climb, steps, record), reads_back=True)


def _until_repeated(climb: Callable[..., Tensor], steps: int, record: Record) -> Ascend:
    """Return the ascent that ends where it is known what all further steps lead to; exactly the same images.

    A batch's next iterate is a function of the one before, and steps of one size soon lead round in a circle,
    most images in one of 2 or 4 steps (arXiv 2503.19347). Where a batch comes back to an iterate, only what
    is left of its last round is done. As in Brent's algorithm, the iterate that is compared with is one at a
    power of two, so that no others are kept.

    Whole batches are looked at, not images: dropped from the batch, those that repeat would leave one of
    another size, whose convolutions may round otherwise. It is exact for any network, also one whose outputs
    for an image depend on others of the batch; what is left of the steps before the first chunk comes first.
    """
    chunk = record(partial(climb, steps=CHUNK))

    def ascend(images: Tensor, labels: Tensor, first: Tensor) -> Tensor:
        iterate = kept = climb(images, labels, first, steps=steps % CHUNK)
        left, since, most = steps // CHUNK, 0, 1
        while left:
            # Cloned: a replayed graph overwrites its result.
            iterate = chunk(images, labels, iterate).clone()
            left, since = left - 1, since + 1
            if torch.equal(iterate, kept):
                left %= since
            elif since == most:
                kept, since, most = iterate, 0, 2 * most
        return iterate

    return ascend


def _whole_space(images: Tensor, norm: Norm) -> float:
    """Return the distance of a black from a white image: a ball around any image that leaves none out."""
    return 1.0 if norm == "linf" else math.sqrt(images[0].numel())


def fgsm(victim: Victim, kernels: Kernels, epsilon: float, norm: Norm = "linf") -> LabelAttack:
    """Return the fast gradient sign method (Goodfellow et al. 2015): one step of ε from the clean image.

    In L2 it goes along the normalised gradient: the fast gradient method.
    """

    def ascend(images: Tensor, labels: Tensor, first: Tensor) -> Tensor:
        return pgd(
            victim, images, labels, first, norm=norm, epsilon=epsilon, step_size=epsilon, steps=1,
            kernels=kernels, mark_nan=True,
        )  # fmt: skip

    return LabelAttack(_clean_start, ascend)


def no_attack() -> LabelAttack:
    """Return the attack that leaves the images unchanged."""
    return LabelAttack(_clean_start, lambda images, labels, first: first)


def _clean_start(batch: Batch, number: int, restart: int = 0) -> Tensor:
    return batch.images


class MarginVictim:
    """A network whose `input_gradient` is that of the margin max_{j≠y} z_j − z_y of its logits z.

    It is the loss f6 of Carlini and Wagner (2017) without their cut-off at a confidence κ, which the field's
    codes set to 50 and so never meet. PGD on it is what they call CW in L-infinity.
    """

    def __init__(self, victim: EagerVictim) -> None:
        self.victim = victim
        self.input_dtype, self.scale = victim.input_dtype, victim.scale

    def refresh(self) -> None:
        """Refresh the network."""
        self.victim.refresh()

    def logits(self, images: Tensor) -> Tensor:
        """Map images (B, 3, H, W) to logits (B, C), without a gradient."""
        return self.victim.logits(images)

    def input_gradient(self, images: Tensor, target: Tensor) -> Tensor:
        """Return the gradient of scale · Σ margin at the images, (B, 3, H, W), for int64 labels (B,)."""
        return self.victim.gradient_from(images, lambda logits: margin_gradient(logits, target, self.scale))


def margin_gradient(logits: Tensor, labels: Tensor, scale: float = 1.0) -> Tensor:
    """Return the gradient of scale · Σ (max_{j≠y} z_j − z_y) at logits (B, C), for int64 labels (B,)."""
    own = labels[:, None]
    rival = logits.scatter(1, own, -math.inf).argmax(1, keepdim=True)
    return torch.zeros_like(logits).scatter(1, rival, scale).scatter(1, own, -scale)


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
