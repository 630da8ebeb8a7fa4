"""Auto-PGD (Croce and Hein, ICML 2020, Algorithm 1), for as long as an image is classified correctly.

Each image has its own step size and best iterate, so one that fell is left out of the batch from then on.
Random numbers are drawn for all images that the official code attacks at once, in its order.
"""

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from fastpeer.config import Norm
from fastpeer.evaluation.autoattack_parts.network import AttackedNetwork, Loss
from fastpeer.evaluation.autoattack_parts.rows import Fallen, Rows

RISES = 0.75
"""Share of steps that must increase the loss, lest the step size is halved (ρ)."""
MOMENTUM = 0.75
"""Share of the new step (α)."""
FIRST_WINDOW, SHORTER, LAST_WINDOW = 22, 3, 6
"""Steps between two looks at the step sizes: at first, fewer each time, at least (of 100 iterations)."""


@dataclass(frozen=True)
class Ball:
    """The images within `epsilon` of others in a norm, and in [0, 1]."""

    norm: Norm
    epsilon: float

    def project(self, points: Tensor, images: Tensor) -> Tensor:
        """Return the points (B, 3, H, W), each moved into the ball around its image."""
        if self.norm == "linf":
            return torch.clamp(points, images - self.epsilon, images + self.epsilon).clamp_(0.0, 1.0)
        moved = points - images
        length = _length(moved)
        return (images + moved / (length + 1e-12) * length.clamp(max=self.epsilon)).clamp_(0.0, 1.0)

    def direction(self, gradient: Tensor) -> Tensor:
        """Return the steepest step of length 1 along a gradient (B, 3, H, W)."""
        return gradient.sign() if self.norm == "linf" else gradient / (_length(gradient) + 1e-12)

    def start(self, images: Tensor, generator: torch.Generator) -> Tensor:
        """Return random points on the ball's surface (in L-infinity: touching a side), moved into [0, 1]."""
        if self.norm == "linf":
            noise = 2 * torch.rand(images.shape, generator=generator).to(images.device) - 1
            noise = noise / (noise.abs().amax((1, 2, 3), keepdim=True) + 1e-12)
        else:
            noise = torch.randn(images.shape, generator=generator).to(images.device)
            noise = noise / (_length(noise) + 1e-12)
        return (images + self.epsilon * noise).clamp_(0.0, 1.0)


@dataclass
class _Climb(Rows):
    """The images that still stand; `best_at_check` is the best loss when step sizes were last looked at."""

    target: Tensor
    before: Tensor
    gradient: Tensor
    loss: Tensor
    best: Tensor
    best_gradient: Tensor
    best_loss: Tensor
    best_at_check: Tensor
    step: Tensor
    rises: Tensor
    halved: Tensor


def cross_entropy(logits: Tensor, labels: Tensor, targets: Tensor) -> Tensor:
    """Return the cross-entropy (B,) of logits (B, C) with labels (B,)."""
    return F.cross_entropy(logits, labels, reduction="none")


def dlr(logits: Tensor, labels: Tensor, targets: Tensor) -> Tensor:
    """Return the difference-of-logits ratio (B,), of at least three classes (their equation 6)."""
    ordered, rows = logits.sort(dim=1).values, torch.arange(len(logits), device=logits.device)
    first = logits.argmax(1) == labels
    other = torch.where(first, ordered[:, -2], ordered[:, -1])
    return -(logits[rows, labels] - other) / (ordered[:, -1] - ordered[:, -3] + 1e-12)


def targeted_dlr(logits: Tensor, labels: Tensor, targets: Tensor) -> Tensor:
    """Return the targeted difference-of-logits ratio (B,), of at least four classes (their equation 7)."""
    ordered, rows = logits.sort(dim=1).values, torch.arange(len(logits), device=logits.device)
    spread = ordered[:, -1] - 0.5 * (ordered[:, -3] + ordered[:, -4])
    return -(logits[rows, labels] - logits[rows, targets]) / (spread + 1e-12)


def apgd(
    network: AttackedNetwork, images: Tensor, labels: Tensor, targets: Tensor, loss: Loss, ball: Ball,
    iterations: int, generator: torch.Generator,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    """Attack images (B, 3, H, W) once, from a random start.

    Args:
        network: attacked.
        images: clean.
        labels: int64 (B,).
        targets: what `loss` aims at, int64 (B,).
        loss: climbed.
        ball: that is not left.
        iterations: steps of an image that does not fall.
        generator: on the CPU, of the start.

    Returns:
        Adversarial images (B, 3, H, W), which of them the network misclassifies (B,), and which had a
        gradient of zero at the start (B,).
    """
    start = ball.start(images, generator)
    gradient, logits, values = network.gradient(loss, start, labels, targets)
    rows = _begun(images, labels, targets, start, gradient, values, 2 * ball.epsilon)
    # A gradient of NaN moves as little as one of zero.
    zero, found = (gradient.nan_to_num(nan=0.0).flatten(1) == 0).all(1), Fallen(images)
    ends, window = _ends_of_windows(iterations), 0
    for iteration in range(iterations + 1):
        fell = network.fallen(rows.at, rows.label, logits)
        if not found.take(rows, fell) or iteration == iterations:
            break
        if iteration:
            _note_loss(rows, values[~fell])
            window += 1
        if iteration in ends:
            _halve_steps(rows, window)
            window = 0
        _move(rows, ball, first=iteration == 0)
        rows.gradient, logits, values = network.gradient(loss, rows.at, rows.label, rows.target)
    return found.images, found.rows, zero


def apgd_targeted(
    network: AttackedNetwork, images: Tensor, labels: Tensor, loss: Loss, ball: Ball, iterations: int,
    target_count: int, generator: torch.Generator,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    """Attack images towards each of their `target_count` likeliest wrong classes in turn; else as `apgd`."""
    ranked, found = network.judged(images).sort(dim=1).indices, Fallen(images)
    zero = torch.zeros_like(found.rows)
    for rank in range(2, target_count + 2):
        left = found.standing
        if not len(left):
            break
        found.images[left], found.rows[left], flat = apgd(
            network, images[left], labels[left], ranked[left, -rank], loss, ball, iterations, generator
        )
        zero[left] |= flat
    return found.images, found.rows, zero


def _begun(
    images: Tensor, labels: Tensor, targets: Tensor, start: Tensor, gradient: Tensor, values: Tensor,
    step: float,
) -> _Climb:  # fmt: skip
    steps = torch.full((len(images), 1, 1, 1), step, device=images.device)
    return _Climb(
        place=torch.arange(len(images), device=images.device), image=images, label=labels, target=targets,
        at=start, before=start, gradient=gradient, loss=torch.zeros_like(values),
        best=start, best_gradient=gradient, best_loss=values, best_at_check=values,
        step=steps, rises=torch.zeros_like(values), halved=torch.ones_like(labels, dtype=torch.bool),
    )  # fmt: skip


def _move(rows: _Climb, ball: Ball, first: bool) -> None:
    """Take a step, with momentum from the second on."""
    share = 1.0 if first else MOMENTUM
    momentum = rows.at - rows.before
    ahead = ball.project(rows.at + rows.step * ball.direction(rows.gradient), rows.image)
    mixed = rows.at + (ahead - rows.at) * share + momentum * (1 - share)
    rows.before, rows.at = rows.at, ball.project(mixed, rows.image)


def _note_loss(rows: _Climb, values: Tensor) -> None:
    """Note the loss (B,) of where the rows are now. The first is compared with 0, as in the official code."""
    rows.rises = rows.rises + (values > rows.loss)
    rows.loss = values
    better = values > rows.best_loss
    rows.best_loss = torch.where(better, values, rows.best_loss)
    better = better.view(-1, 1, 1, 1)
    rows.best = torch.where(better, rows.at, rows.best)
    rows.best_gradient = torch.where(better, rows.gradient, rows.best_gradient)


def _halve_steps(rows: _Climb, window: int) -> None:
    """Halve the steps of rows whose loss rose too seldom in the last `window` steps; back to their best."""
    stuck = ~rows.halved & (rows.best_at_check >= rows.best_loss)
    halved = (rows.rises <= window * RISES) | stuck
    rows.halved, rows.best_at_check = halved, rows.best_loss
    rows.rises = torch.zeros_like(rows.rises)
    halved = halved.view(-1, 1, 1, 1)
    rows.step = torch.where(halved, rows.step / 2, rows.step)
    rows.at = torch.where(halved, rows.best, rows.at)
    rows.gradient = torch.where(halved, rows.best_gradient, rows.gradient)


def _ends_of_windows(iterations: int) -> set[int]:
    """Return the iterations, from 1 on, after which the step sizes are looked at (their section 3.1)."""
    ends, window, end = set(), FIRST_WINDOW, FIRST_WINDOW
    while end <= iterations:
        ends.add(end)
        window = max(window - SHORTER, LAST_WINDOW)
        end += window
    return ends


def _length(images: Tensor) -> Tensor:
    """Return the Euclidean length (B, 1, 1, 1) of each image."""
    # Summed as in the official code: other sums are rounded otherwise.
    return (images**2).reshape(len(images), -1).sum(-1).sqrt().view(-1, 1, 1, 1)
