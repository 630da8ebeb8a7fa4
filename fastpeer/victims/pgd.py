"""Projected gradient ascent on KL(p ‖ S(x̃)), with p fixed; labels in place of p make it cross-entropy."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from fastpeer.kernels.choice import Kernels
from fastpeer.victims.interface import Victim


@torch.no_grad()
def pgd(
    victim: Victim,
    images: Tensor,
    target: Tensor,
    start: Tensor,
    *,
    epsilon: float,
    step_size: float,
    steps: int,
    kernels: Kernels,
    nan_count: Tensor | None = None,
) -> Tensor:
    """Run `steps` signed gradient steps from `start` and return the last iterate.

    Args:
        victim: the network; `refresh` it first if its weights have changed.
        images: clean images in [0, 1] (B, 3, H, W), float32 or float64; the iterate keeps their dtype.
        target: (B, C) probabilities that the prediction is led away from, or int64 labels (B,).
        start: first iterate, like `images`; it may leave [0, 1], as in the released codes.
        epsilon: radius of the L-infinity ball around `images`.
        step_size: how far a step moves each pixel.
        steps: number of steps; 0 returns `start`.
        kernels: for the update of the iterate.
        nan_count: int64, one element, to which the number of NaN gradient values is added; they move nothing.

    Returns:
        (B, 3, H, W), detached; after a step, in the ball and in [0, 1].
    """
    # The iterate stays in the images' dtype even where the victim computes in float16: half precision would
    # round every step and the bounds of the ball. The victim's copy is written in the update's own launch.
    copy = victim.input_dtype if victim.input_dtype != images.dtype else None
    adversarial = start.detach()
    victim_images = adversarial if copy is None else adversarial.to(copy)
    for _ in range(steps):
        gradient = victim.input_gradient(victim_images, target)
        adversarial, victim_images = kernels.pgd_update(
            adversarial, gradient, images, step_size, epsilon, copy=copy, nan_count=nan_count
        )
    return adversarial


def uniform_start(images: Tensor, epsilon: float, generator: torch.Generator) -> Tensor:
    """Return x + U(−ε, ε) in the shape and dtype of `images`, not clamped to [0, 1].

    The start of PGD in evaluations.
    """
    noise = torch.rand(images.shape, generator=generator, device=images.device, dtype=images.dtype)
    return images + epsilon * (2 * noise - 1)


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
