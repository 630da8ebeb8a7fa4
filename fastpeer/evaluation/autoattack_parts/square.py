"""Square Attack (Andriushchenko et al., ECCV 2020) in L-infinity: stripes, then squares at random places.

What is drawn for a query does not depend on the images: all of it is drawn before the first one, in the order
of the official code. A square that changes nothing of an image is not asked about.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from fastpeer.evaluation.autoattack_parts.network import AttackedNetwork
from fastpeer.evaluation.autoattack_parts.rows import Fallen, Rows

SHARE = 0.8
"""Share of an image that the first squares cover (p)."""
HALVED_AFTER = (10, 50, 200, 500, 1000, 2000, 4000, 6000, 8000)
"""Queries after which the share is halved."""
Window = tuple[slice, slice, slice, slice]


@dataclass
class _Search(Rows):
    """The images that still stand, with the squares that helped; `margin`: of the label's logit then."""

    margin: Tensor


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
    count, channels, height, width = images.shape
    stripes = _signs((count, channels, 1, width), generator).to(images.device)
    start, found = (images + epsilon * stripes).clamp_(0.0, 1.0), Fallen(images)
    logits = network.logits(start)
    rows = _Search(found.standing, images, labels, start, _margins(logits, labels))
    if not found.take(rows, network.fallen(start, labels, logits)):
        return found.images, found.rows
    for tall, wide, signs in _squares(queries, (channels, height, width), generator):
        window = (slice(None), slice(None), tall, wide)
        change = 2 * epsilon * signs.to(images.device)
        if not found.take(rows, _try(network, rows, window, change, epsilon)):
            break
    return found.images, found.rows


def _try(network: AttackedNetwork, rows: _Search, window: Window, change: Tensor, epsilon: float) -> Tensor:
    """Change a window of the images by (C, 1, 1), keep it where it helps, and return which fell (B,)."""
    new = _within(rows.at[window] + change, rows.image[window], epsilon)
    changed = (new != rows.at[window]).flatten(1).any(1).nonzero().squeeze(1)
    fell = torch.zeros_like(rows.label, dtype=torch.bool)
    if not len(changed):
        return fell
    tried, labels = rows.at[changed], rows.label[changed]
    tried[window] = new[changed]
    logits = network.logits(tried)
    margins = _margins(logits, labels)
    fell[changed] = network.fallen(tried, labels, logits)
    better = (margins < rows.margin[changed]) | fell[changed]
    rows.margin[changed[better]], rows.at[changed[better]] = margins[better], tried[better]
    return fell


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
