"""FAB, targeted (Croce and Hein, ICML 2020, "Minimally distorted adversarial examples"), for its verdict.

It looks for the nearest adversarial image; whether one lies within epsilon is known with the first such, at
which this one stops. The official code classifies each iterate, and runs the network again for the gradient
there: once is enough, unless the iterate was adversarial and is drawn back.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from fastpeer.config import Norm
from fastpeer.evaluation.autoattack_parts.network import AttackedNetwork
from fastpeer.evaluation.autoattack_parts.projection import shortest_way_l2, shortest_way_linf
from fastpeer.evaluation.autoattack_parts.rows import Fallen, Rows

BIAS = 0.1
"""Largest share of the way that leads from the clean image, not from the iterate (α_max)."""
OVERSHOOT = 1.05
"""How far to go beyond the boundary (η)."""
DRAW_BACK = 0.9
"""Share of the way from the clean image that an adversarial iterate keeps (β)."""
Distances = Callable[[Tensor], Tensor]
SHORTEST_WAYS: dict[Norm, Callable[[Tensor, Tensor, Tensor], Tensor]] = {
    "linf": shortest_way_linf,
    "l2": shortest_way_l2,
}
LENGTHS: dict[Norm, Distances] = {
    "linf": lambda flat: flat.abs().max(dim=1)[0],
    "l2": lambda flat: (flat**2).sum(dim=1).sqrt(),
}
"""Of vectors (B, D): their norms (B,)."""


@dataclass
class _Search(Rows):
    """The images that still stand.

    Attributes:
        gradient, difference: of the target's logit less the label's, where `known`.
        near: the last iterate was adversarial, and so, probably, will be the next.
    """

    target: Tensor
    gradient: Tensor
    difference: Tensor
    known: Tensor
    near: Tensor


def fab_targeted(
    network: AttackedNetwork, images: Tensor, labels: Tensor, norm: Norm, epsilon: float, iterations: int,
    target_count: int,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """Attack images towards each of their `target_count` likeliest wrong classes in turn.

    Args:
        network: attacked.
        images: clean (B, 3, H, W), classified correctly.
        labels: int64 (B,).
        norm: of the distance.
        epsilon: largest distance that counts.
        iterations: for each class.
        target_count: number of classes.

    Returns:
        Adversarial images (B, 3, H, W), and which of them the network misclassifies (B,).
    """
    ranked, found = network.judged(images).sort(dim=1).indices, Fallen(images)
    for rank in range(2, target_count + 2):
        left = found.standing
        if not len(left):
            break
        rows = _begun(left, images[left], labels[left], ranked[left, -rank])
        for _ in range(iterations):
            _know_gradient(network, rows)
            _move(rows, norm)
            if not found.take(rows, _classify(network, rows, norm, epsilon)):
                break
            rows.at = torch.where(_wide(rows.near), _drawn_back(rows), rows.at)
            rows.known &= ~rows.near
    return found.images, found.rows


def _begun(places: Tensor, images: Tensor, labels: Tensor, targets: Tensor) -> _Search:
    no = torch.zeros_like(labels, dtype=torch.bool)
    return _Search(
        place=places, image=images, label=labels, target=targets, at=images,
        gradient=torch.zeros_like(images), difference=images.new_zeros(len(images)), known=no, near=no,
    )  # fmt: skip


def _difference(logits: Tensor, labels: Tensor, targets: Tensor) -> Tensor:
    rows = torch.arange(len(logits), device=logits.device)
    return -(logits[rows, labels] - logits[rows, targets])


def _know_gradient(network: AttackedNetwork, rows: _Search) -> None:
    unknown = (~rows.known).nonzero().squeeze(1)
    if len(unknown):
        _take_gradient(network, rows, unknown)


def _take_gradient(network: AttackedNetwork, rows: _Search, chosen: Tensor) -> Tensor:
    """Take the gradient at some rows' iterates; return their logits."""
    gradient, logits, difference = network.gradient(
        _difference, rows.at[chosen], rows.label[chosen], rows.target[chosen]
    )
    rows.gradient = rows.gradient.index_copy(0, chosen, gradient)
    rows.difference = rows.difference.index_copy(0, chosen, difference)
    return logits


def _move(rows: _Search, norm: Norm) -> None:
    """Project iterate and clean image onto the linearised boundary, and go between the two, beyond it."""
    count, shape = len(rows.at), rows.at.shape
    normal = rows.gradient.reshape(count, -1)
    offset = -rows.difference + (rows.gradient * rows.at).reshape(count, -1).sum(dim=-1)
    points = torch.cat((rows.at.reshape(count, -1), rows.image.reshape(count, -1)))
    ways = SHORTEST_WAYS[norm](points, torch.cat((normal, normal)), torch.cat((offset, offset)))
    lengths = LENGTHS[norm](ways).clamp(min=1e-8)
    share = _wide((lengths[:count] / (lengths[:count] + lengths[count:])).clamp(0.0, BIAS))
    from_here, from_image = (
        start + way.reshape(shape) * OVERSHOOT
        for start, way in zip((rows.at, rows.image), (ways[:count], ways[count:]), strict=True)
    )
    rows.at = (from_here * (1 - share) + from_image * share).clamp_(0.0, 1.0)


def _classify(network: AttackedNetwork, rows: _Search, norm: Norm, epsilon: float) -> Tensor:
    """Return which rows (B,) have an adversarial image within epsilon; note which are adversarial at all."""
    logits = _logits(network, rows)
    rows.near = logits.argmax(1) != rows.label
    distances = LENGTHS[norm]((rows.at - rows.image).reshape(len(rows.at), -1))
    within = (distances <= epsilon).nonzero().squeeze(1)
    fell = torch.zeros_like(rows.near)
    if len(within):
        fell[within] = network.fallen(rows.at[within], rows.label[within], logits[within])
        rows.near[within] = fell[within]
    return fell


def _logits(network: AttackedNetwork, rows: _Search) -> Tensor:
    """Return the iterates' logits (B, C); where they will probably stay, take the gradient with them."""
    near, far = rows.near.nonzero().squeeze(1), (~rows.near).nonzero().squeeze(1)
    rows.known = ~rows.near
    if not len(near):
        return _take_gradient(network, rows, far)
    if not len(far):
        return network.logits(rows.at)
    found = network.logits(rows.at[near])
    logits = found.new_empty(len(rows.at), found.shape[1])
    logits[near], logits[far] = found, _take_gradient(network, rows, far)
    return logits


def _drawn_back(rows: _Search) -> Tensor:
    return rows.image + (rows.at - rows.image) * DRAW_BACK


def _wide(rows: Tensor) -> Tensor:
    return rows.view(-1, 1, 1, 1)
