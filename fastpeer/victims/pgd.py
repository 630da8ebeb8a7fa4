"""Projected gradient ascent on KL(p ‖ S(x̃)), with p fixed; labels in place of p make it cross-entropy."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from fastpeer.config import Norm
from fastpeer.kernels.choice import Kernels
from fastpeer.victims.interface import SteppingVictim, Victim


@torch.no_grad()
def pgd(
    victim: Victim,
    images: Tensor,
    target: Tensor,
    start: Tensor,
    *,
    norm: Norm = "linf",
    epsilon: float,
    step_size: float,
    steps: int,
    kernels: Kernels,
    nonfinite_count: Tensor | None = None,
    mark_nan: bool = False,
) -> Tensor:
    """Run `steps` gradient steps from `start` and return the last iterate.

    In L-infinity a step is the gradient's sign (Madry et al., ICLR 2018), in L2 each image's gradient divided
    by its L2 norm. Each step is followed by the projection onto the ball, then onto [0, 1].

    Args:
        victim: the network; `refresh` it first if its weights have changed.
        images: clean images in [0, 1] (B, 3, H, W), float32 or float64; the iterate keeps their dtype.
        target: (B, C) probabilities that the prediction is led away from, or int64 labels (B,).
        start: first iterate, like `images`; it may leave [0, 1], as in the released codes.
        norm: of the ball.
        epsilon: radius of the ball around `images`.
        step_size: how far a step moves each pixel, or in L2 each image.
        steps: number of steps; 0 returns `start`.
        kernels: for the update of the iterate.
        nonfinite_count: int64, one element, to which the number of values in gradients that are not finite is
            added. NaN moves nothing; an infinite value is a step of its sign, in L2 the image's direction.
        mark_nan: return NaN for each image with NaN in its last gradient, which attacked it in part or not at
            all: whoever classifies it then sees no image that withstood an attack.

    Returns:
        (B, 3, H, W), detached; after a step, in the ball and in [0, 1].
    """
    # The iterate stays in the images' dtype even where the victim computes in float16: half precision would
    # round every step and the bounds of the ball. The victim's copy is written in the update's own launch.
    copy = victim.input_dtype if victim.input_dtype != images.dtype else None
    adversarial = start.detach()
    victim_images = adversarial if copy is None else adversarial.to(copy)
    update = kernels.pgd_l2_update if norm == "l2" else kernels.pgd_update
    gradient = None
    # What marks NaN needs the gradient itself.
    whole = norm == "linf" and copy is None and not mark_nan
    if whole and isinstance(victim, SteppingVictim) and victim.takes_steps(adversarial):
        for _ in range(steps):
            adversarial = victim.step(adversarial, images, target, step_size, epsilon, nonfinite_count)
        return adversarial
    for _ in range(steps):
        gradient = victim.input_gradient(victim_images, target)
        adversarial, victim_images = update(
            adversarial, gradient, images, step_size, epsilon, copy=copy, nonfinite_count=nonfinite_count
        )
    return _marked(adversarial, gradient) if mark_nan and gradient is not None else adversarial


def _marked(images: Tensor, gradient: Tensor) -> Tensor:
    """Return NaN for the images (B, 3, H, W) in whose gradient there is any."""
    unknown = gradient.isnan().flatten(1).any(1)[:, None, None, None]
    return images.masked_fill(unknown, torch.nan)


def uniform_start(images: Tensor, epsilon: float, generator: torch.Generator, norm: Norm = "linf") -> Tensor:
    """Return x + noise that is uniform in the ball of radius `epsilon`, the start of PGD in evaluations.

    The result has the shape and dtype of `images` and is not clamped to [0, 1].
    """
    device, dtype = images.device, images.dtype
    if norm == "linf":
        noise = torch.rand(images.shape, generator=generator, device=device, dtype=dtype)
        return images + epsilon * (2 * noise - 1)
    direction = torch.randn(images.shape, generator=generator, device=device, dtype=dtype)
    part = torch.rand(len(images), 1, 1, 1, generator=generator, device=device, dtype=dtype)
    # The part u of a ball in d dimensions lies within the radius u^(1/d).
    radius = epsilon * part.pow(1 / images[0].numel())
    lengths: Tensor = torch.linalg.vector_norm(direction, dim=(1, 2, 3), keepdim=True)
    return images + radius / lengths * direction


@contextmanager
def evaluating(*networks: nn.Module) -> Iterator[None]:
    """Put networks into eval mode, and each back into its former mode at the end, also after an error."""
    modes = [network.training for network in networks]
    for network in networks:
        network.eval()
    try:
        yield
    finally:
        for network, training in zip(networks, modes, strict=True):
            network.train(training)
