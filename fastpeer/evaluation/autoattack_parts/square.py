"""Square Attack (Andriushchenko et al., ECCV 2020) in L-infinity: stripes, then squares at random places.

What is drawn for a query does not depend on the images: all of it is drawn before the first one, in the order
of the official code. A square that changes nothing of an image is not asked about.
"""

import math
from collections.abc import Iterator

import torch
from torch import Tensor

from fastpeer.evaluation.autoattack_parts.network import AttackedNetwork

SHARE = 0.8
"""Share of an image that the first squares cover (p)."""
HALVED_AFTER = (10, 50, 200, 500, 1000, 2000, 4000, 6000, 8000)
"""Queries after which the share is halved."""


def square(
    network: AttackedNetwork, images: Tensor, labels: Tensor, epsilon: float, queries: int,
    generator: torch.Generator,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """Attack images with random squares, whose signs are those of each channel's change.

    Args:
        network: attacked; no gradient of it is taken.
        images: clean (B, 3, H, W), classified correctly.
        labels: int64 (B,).
        epsilon: radius of the L-infinity ball.
        queries: for an image that does not fall.
        generator: on the CPU.

    Returns:
        Adversarial images (B, 3, H, W), and which of them the network misclassifies (B,).
    """
    adversarial, fallen = images.clone(), torch.zeros_like(labels, dtype=torch.bool)
    place = torch.arange(len(images), device=images.device)
    count, channels, height, width = images.shape
    stripes = _signs((count, channels, 1, width), generator).to(images.device)
    best = (images + epsilon * stripes).clamp_(0.0, 1.0)
    logits = network.logits(best)
    margins, fell = _margins(logits, labels), network.fallen(best, labels, logits)
    for rows, columns, signs in _squares(queries, (channels, height, width), generator):
        if fell.any():
            adversarial[place[fell]], fallen[place[fell]] = best[fell], True
            place, images, labels, best, margins = (
                each[~fell] for each in (place, images, labels, best, margins)
            )
        if not len(place):
            break
        window = (slice(None), slice(None), rows, columns)
        new = _within(best[window] + 2 * epsilon * signs.to(images.device), images[window], epsilon)
        changed = (new != best[window]).flatten(1).any(1).nonzero().squeeze(1)
        fell = torch.zeros_like(labels, dtype=torch.bool)
        if not len(changed):
            continue
        tried = best[changed]
        tried[window] = new[changed]
        logits = network.logits(tried)
        found = _margins(logits, labels[changed])
        fell[changed] = network.fallen(tried, labels[changed], logits)
        better = (found < margins[changed]) | fell[changed]
        margins[changed[better]], best[changed[better]] = found[better], tried[better]
    if fell.any():
        adversarial[place[fell]], fallen[place[fell]] = best[fell], True
    return adversarial, fallen


def _squares(
    queries: int, shape: tuple[int, int, int], generator: torch.Generator
) -> Iterator[tuple[slice, slice, Tensor]]:
    """Yield each query's rows, columns and signs (C, 1, 1)."""
    channels, height, width = shape
    numbers = torch.rand((queries, 2 + channels), generator=generator)
    signs = torch.sign(2 * numbers[:, 2:] - 1).view(-1, channels, 1, 1)
    sides = torch.tensor([_side(query, shape) for query in range(queries)])
    tops, lefts = ((limit - sides) * numbers[:, axis] for axis, limit in enumerate((height, width)))
    places = zip(tops.long().tolist(), lefts.long().tolist(), sides.tolist(), signs, strict=True)
    for top, left, side, sign in places:
        yield slice(top, top + side), slice(left, left + side), sign


def _side(query: int, shape: tuple[int, int, int]) -> int:
    channels, height, width = shape
    share = SHARE / 2 ** sum(query > after for after in HALVED_AFTER)
    pixels = share * (channels * height * width) / channels
    return min(max(round(math.sqrt(pixels)), 1), height, width)


def _signs(shape: tuple[int, ...], generator: torch.Generator) -> Tensor:
    return torch.sign(2 * torch.rand(shape, generator=generator) - 1)


def _within(points: Tensor, images: Tensor, epsilon: float) -> Tensor:
    return torch.clamp(points, images - epsilon, images + epsilon).clamp_(0.0, 1.0)


def _margins(logits: Tensor, labels: Tensor) -> Tensor:
    """Return the label's logit less the largest other one, (B,)."""
    own = logits.gather(1, labels[:, None])
    others = logits.scatter(1, labels[:, None], -math.inf)
    return own.squeeze(1) - others.amax(1)
