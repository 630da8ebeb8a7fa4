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
        images: clean images in [0, 1] (B, 3, H, W), float32 or float64; the iterate keeps their dtype, since
            half precision steps by as much as a pixel does.
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
    copy = victim.input_dtype if victim.input_dtype != images.dtype else None
    adversarial = start.detach()
    seen = adversarial if copy is None else adversarial.to(copy)
    for _ in range(steps):
        gradient = victim.input_gradient(seen, target)
        adversarial, seen = kernels.pgd_update(
            adversarial, gradient, images, step_size, epsilon, copy=copy, nan_count=nan_count
        )
    return adversarial


def uniform_start(images: Tensor, epsilon: float, generator: torch.Generator) -> Tensor:
    """Return x + U(−ε, ε), unclamped, as the evaluations start."""
    noise = torch.rand(images.shape, generator=generator, device=images.device, dtype=images.dtype)
    return images + epsilon * (2 * noise - 1)


@contextmanager
def evaluating(*networks: nn.Module) -> Iterator[None]:
    """Put networks into eval mode, and each back into the mode it was in."""
    modes = [network.training for network in networks]
    for network in networks:
        network.eval()
    try:
        yield
    finally:
        for network, training in zip(networks, modes, strict=True):
            network.train(training)
