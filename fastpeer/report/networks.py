"""What the figures need of a network: predictions, penultimate features, the gradient at the images."""

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F


@torch.no_grad()
def predicted(network: nn.Module, images: Tensor) -> np.ndarray:
    """Return the class of each image, int64 (B,)."""
    found: np.ndarray = network(images).argmax(1).cpu().numpy()
    return found


@torch.no_grad()
def penultimate(network: nn.Module, images: Tensor) -> np.ndarray | None:
    """Return the features (B, D) that the last linear layer sees; None: the network has no such layer."""
    linear = [module for module in network.modules() if isinstance(module, nn.Linear)]
    seen: list[Tensor] = []
    if not linear:
        return None
    handle = linear[-1].register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    try:
        network(images)
    finally:
        handle.remove()
    return seen[-1].flatten(1).float().cpu().numpy() if seen else None


def semantic_gradient(network: nn.Module, images: Tensor, labels: Tensor) -> Tensor:
    """Return what the loss depends on in each image, in [0, 1] (B, H, W).

    The gradient of the cross-entropy at the images, clipped at three standard deviations of each image's,
    absolute values summed over the channels and scaled to [0, 1] (Figure 6 of PeerAiD, Jung et al. 2024).

    Args:
        network: in eval mode.
        images: (B, C, H, W) in [0, 1].
        labels: int64 (B,).
    """
    with torch.enable_grad():
        leaf = images.detach().clone().requires_grad_()
        loss = F.cross_entropy(network(leaf), labels, reduction="sum")
        (gradient,) = torch.autograd.grad(loss, leaf)
    return scaled_gradient(gradient)


def scaled_gradient(gradient: Tensor) -> Tensor:
    """Clip, sum and scale gradients (B, C, H, W) as `semantic_gradient` says; one that is zero stays so."""
    spread = 3 * gradient.flatten(1).std(1).view(-1, 1, 1, 1)
    summed = gradient.clamp(-spread, spread).abs().sum(1)
    low, high = summed.flatten(1).min(1).values, summed.flatten(1).max(1).values
    return (summed - low.view(-1, 1, 1)) / (high - low).clamp_min(1e-30).view(-1, 1, 1)
