"""Projected gradient ascent on KL(p ‖ S(x̃)), with p fixed; a one-hot p makes it cross-entropy."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from fastpeer.kernels.pgd_update import attack_gradient, pgd_update

Network = Callable[[Tensor], Tensor]

FP16_SCALE = 1024.0
"""Keeps small gradients of a float16 backward pass from vanishing; their sign does not see it."""


def pgd(
    network: Network,
    images: Tensor,
    target: Tensor,
    start: Tensor,
    *,
    epsilon: float,
    step_size: float,
    steps: int,
) -> Tensor:
    """Run `steps` signed gradient steps from `start` and return the last iterate.

    Args:
        network: logits (B, C) of images (B, 3, H, W); put it into eval mode first (`evaluating`).
        images: clean images in [0, 1], float32 or float64; the iterate keeps their dtype, since half
            precision steps by as much as a pixel does.
        target: (B, C) probabilities that the prediction is led away from.
        start: first iterate, like `images`; it may leave [0, 1], as in the released codes.
        epsilon: radius of the L-infinity ball around `images`.
        step_size: how far a step moves each pixel.
        steps: number of steps; 0 returns `start`.

    Returns:
        (B, 3, H, W), detached; after a step, in the ball and in [0, 1].
    """
    adversarial = start.detach()
    for _ in range(steps):
        gradient = input_gradient(network, adversarial, target)
        adversarial = pgd_update(adversarial, gradient, images, step_size, epsilon)
    return adversarial


def input_gradient(network: Network, images: Tensor, target: Tensor) -> Tensor:
    """Gradient of Σ KL(target ‖ softmax(network(images))) at the images, up to a positive factor.

    No loss is computed: its gradient at the logits is softmax − target. Weights get no gradient.
    """
    leaf = images.detach().requires_grad_()
    with torch.enable_grad():
        logits = network(leaf)
    at_logits = attack_gradient(logits.detach(), target)
    if logits.dtype == torch.float16:
        at_logits = at_logits * FP16_SCALE
    return torch.autograd.grad(logits, leaf, at_logits.to(logits.dtype))[0]


def gaussian_start(images: Tensor, std: float, generator: torch.Generator) -> Tensor:
    """Return x + std·N(0, 1), unclamped, as TRADES and PeerAiD start."""
    noise = torch.randn(images.shape, generator=generator, device=images.device, dtype=images.dtype)
    return images + std * noise


def uniform_start(images: Tensor, epsilon: float, generator: torch.Generator) -> Tensor:
    """Return x + U(−ε, ε), unclamped, as the evaluations start."""
    noise = torch.rand(images.shape, generator=generator, device=images.device, dtype=images.dtype)
    return images + epsilon * (2 * noise - 1)


def one_hot(labels: Tensor, classes: int, dtype: torch.dtype) -> Tensor:
    """Return labels (B,) as probabilities (B, C)."""
    return nn.functional.one_hot(labels, classes).to(dtype)


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
