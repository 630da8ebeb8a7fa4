"""Square Attack (Andriushchenko et al., ECCV 2020) in L-infinity: stripes, then squares at random places.

Of the first layers, only what a square reaches is computed (victims/windowed.py), on the CPU.
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
from fastpeer.victims.windowed import WindowedLogits

SHARE = 0.8
"""Share of an image that the first squares cover (p)."""
HALVED_AFTER = (10, 50, 200, 500, 1000, 2000, 4000, 6000, 8000)
"""Queries after which the share is halved."""
Window = tuple[slice, slice, slice, slice]


@dataclass
class _Search(Rows):
    """The images that still stand, with the squares that helped; `margin`: of the label's logit then."""

    margin: Tensor


@dataclass
class _Logits:
    """Logits of images with a changed square: of what it reaches alone, where that is cheaper.

    Attributes:
        network: attacked.
        side: of the squares that `windowed` is for; 0: of none.
        windowed: see `AttackedNetwork.windowed`; holds the images as they are.
    """

    network: AttackedNetwork
    side: int = 0
    windowed: WindowedLogits | None = None

    def expect(self, side: int, images: Tensor) -> None:
        """Take it that squares of a side come next, in images (B, C, H, W)."""
        if side != self.side:
            self.side, self.windowed = side, self.network.windowed(images, side)

    def of(self, tried: Tensor, changed: Tensor, new: Tensor, window: Window) -> Tensor:
        """Return the logits of the images at the places `changed`, which are `tried`.

        Args:
            tried: (b, C, H, W), with their new squares.
            changed: int64 (b,).
            new: (B, C, h, w): the squares of all images.
            window: where the squares are.
        """
        if self.windowed is None:
            return self.network.logits(tried)
        self.network.passes.add(len(new))
        return self.windowed.change(_spans(window), new)[changed]

    def keep(self, kept: Tensor) -> None:
        """Take the new squares of the images at some places, int64, and of no others."""
        if self.windowed is not None and len(self.windowed):
            refused = torch.ones(len(self.windowed), dtype=torch.bool, device=kept.device)
            refused[kept] = False
            self.windowed.take_back(refused)

    def only(self, rows: Tensor) -> None:
        """Go on with some of the images, bool (B,)."""
        if self.windowed is not None and not rows.all():
            self.windowed.only(rows)


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
    reached = _Logits(network)
    for tall, wide, signs in _squares(queries, (channels, height, width), generator):
        window = (slice(None), slice(None), tall, wide)
        change = 2 * epsilon * signs.to(images.device)
        reached.expect(tall.stop - tall.start, rows.at)
        fell = _try(network, reached, rows, window, change, epsilon)
        if not found.take(rows, fell):
            break
        reached.only(~fell)
    return found.images, found.rows


def _try(
    network: AttackedNetwork,
    reached: _Logits,
    rows: _Search,
    window: Window,
    change: Tensor,
    epsilon: float,
) -> Tensor:
    """Change a window of the images by (C, 1, 1), keep it where it helps, and return which fell (B,)."""
    new = _within(rows.at[window] + change, rows.image[window], epsilon)
    changed = (new != rows.at[window]).flatten(1).any(1).nonzero().squeeze(1)
    fell = torch.zeros_like(rows.label, dtype=torch.bool)
    if not len(changed):
        return fell
    tried, labels = rows.at[changed], rows.label[changed]
    tried[window] = new[changed]
    logits = reached.of(tried, changed, new, window)
    margins = _margins(logits, labels)
    fell[changed] = network.fallen(tried, labels, logits)
    better = (margins < rows.margin[changed]) | fell[changed]
    kept = changed[better]
    rows.margin[kept], rows.at[kept] = margins[better], tried[better]
    reached.keep(kept)
    return fell


def _spans(window: Window) -> tuple[tuple[int, int], tuple[int, int]]:
    tall, wide = window[2:]
    return (tall.start, tall.stop), (wide.start, wide.stop)


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
