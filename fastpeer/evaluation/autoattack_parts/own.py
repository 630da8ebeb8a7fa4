"""AutoAttack's attacks by name, as fastpeer runs them: what the official code finds, with less work."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from pyautoattack.square import SquareAttack
from torch import Tensor

from fastpeer.evaluation.attacks import AttackSettings
from fastpeer.evaluation.autoattack_parts import standard
from fastpeer.evaluation.autoattack_parts.apgd import (
    Ball,
    apgd,
    apgd_targeted,
    cross_entropy,
    dlr,
    targeted_dlr,
)
from fastpeer.evaluation.autoattack_parts.fab import fab_targeted
from fastpeer.evaluation.autoattack_parts.network import AttackedNetwork, misclassified
from fastpeer.evaluation.autoattack_parts.square import square


@dataclass(frozen=True)
class Found:
    """What an attack found for a batch.

    Attributes:
        images: adversarial where it found any, else clean, (B, 3, H, W).
        fallen: bool (B,): the network itself misclassifies that image.
        flat: some image's gradient is zero, where that tells of a network that hides it.
    """

    images: Tensor
    fallen: Tensor
    flat: bool = False


Attack = Callable[[Tensor, Tensor], Found]
"""Attacks images (B, 3, H, W), contiguous, all classified correctly, with labels int64 (B,)."""


def own_attack(name: str, network: AttackedNetwork, settings: AttackSettings) -> Attack:
    """Return one of `standard.MIN_CLASSES_OF`; each batch begins with the same random numbers."""
    ball, targets = Ball(settings.norm, settings.epsilon), standard.target_count(settings.classes)
    steps, queries = standard.ITERATIONS, standard.SQUARE_QUERIES

    def generator() -> torch.Generator:
        return torch.Generator().manual_seed(settings.seed)

    def apgd_ce(images: Tensor, labels: Tensor) -> Found:
        return Found(*apgd(network, images, labels, labels, cross_entropy, ball, steps, generator())[:2])

    def apgd_dlr(images: Tensor, labels: Tensor) -> Found:
        found, fallen, flat = apgd(network, images, labels, labels, dlr, ball, steps, generator())
        return Found(found, fallen, bool(flat.any()))

    def apgd_t(images: Tensor, labels: Tensor) -> Found:
        found, fallen, flat = apgd_targeted(
            network, images, labels, targeted_dlr, ball, steps, targets, generator()
        )
        return Found(found, fallen, bool(flat.any()))

    def fab_t(images: Tensor, labels: Tensor) -> Found:
        return Found(*fab_targeted(network, images, labels, ball.norm, ball.epsilon, steps, targets))

    def square_linf(images: Tensor, labels: Tensor) -> Found:
        return Found(*square(network, images, labels, ball.epsilon, queries, generator()))

    def square_l2(images: Tensor, labels: Tensor) -> Found:
        return _square_l2(network, images, labels, ball.epsilon, queries, settings.seed)

    squares = square_linf if ball.norm == "linf" else square_l2
    attacks = {
        "apgd-ce": apgd_ce, "apgd-dlr": apgd_dlr, "apgd-t": apgd_t, "fab-t": fab_t, "square": squares,
    }  # fmt: skip
    return attacks[name]


def _square_l2(
    network: AttackedNetwork, images: Tensor, labels: Tensor, epsilon: float, queries: int, seed: int
) -> Found:
    """Run the official Square: in L2 what it draws depends on which images of the batch have fallen."""
    attacked = SquareAttack(
        network.sure_logits, norm="L2", eps=epsilon, n_queries=queries, p_init=0.8, n_restarts=1, seed=seed,
        resc_schedule=False, device=images.device,
    )  # fmt: skip
    found = attacked.perturb(images, labels)
    fallen = misclassified(network.judged(found), labels)
    if (~fallen & (found != images).flatten(1).any(1)).any():
        # What the fast network alone misclassifies was not attacked to the end.
        attacked.predict = network.judged
        found = attacked.perturb(images, labels)
        fallen = misclassified(network.judged(found), labels)
    return Found(found, fallen)
