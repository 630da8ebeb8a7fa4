"""One step of projected gradient ascent in the L-infinity ball."""

import torch
from torch import Tensor


def attack_gradient(logits: Tensor, target: Tensor) -> Tensor:
    """Gradient at the logits of Σ KL(target ‖ softmax(logits)), the loss that the attacks climb.

    Args:
        logits: (B, C), any floating dtype.
        target: (B, C) probabilities: a one-hot label makes it cross-entropy.

    Returns:
        softmax(logits) − target, (B, C), in the target's dtype.
    """
    return torch.softmax(logits.to(target.dtype), dim=1) - target


def pgd_update(
    adversarial: Tensor, gradient: Tensor, images: Tensor, step_size: float, epsilon: float
) -> Tensor:
    """Step along the gradient's sign, then back into the `epsilon` box around `images`, then into [0, 1].

    All tensors (B, 3, H, W) of one dtype; the order (step, box, pixel range) is that of the official codes.
    """
    moved = adversarial + step_size * gradient.sign()
    return torch.clamp(moved, images - epsilon, images + epsilon).clamp_(0, 1)
