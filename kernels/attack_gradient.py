"""The gradient at the logits that the attacks climb."""

import torch
from torch import Tensor


def attack_gradient(logits: Tensor, target: Tensor, scale: float = 1.0) -> Tensor:
    """Gradient at the logits of scale · Σ KL(target ‖ softmax(logits)), the loss that the attacks climb.

    Args:
        logits: (B, C), any floating dtype; computed in float64 for float64 logits, else in float32.
        target: (B, C) probabilities of any floating dtype, or int64 labels (B,), which stand for one-hot
            probabilities and make it cross-entropy.
        scale: factor, applied before the result is rounded to the logits' dtype.

    Returns:
        (softmax(logits) − target) · scale, (B, C), in the logits' dtype.
    """
    exact = logits if logits.dtype == torch.float64 else logits.float()
    if not target.is_floating_point():
        target = torch.nn.functional.one_hot(target, logits.shape[1])
    return ((torch.softmax(exact, dim=1) - target.to(exact.dtype)) * scale).to(logits.dtype)
