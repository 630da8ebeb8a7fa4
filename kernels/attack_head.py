"""The last layers of an attacked network, forward and back: average pooling, classifier and loss."""

import torch
from torch import Tensor
from torch.nn import functional as F

from fastpeer.kernels.attack_gradient import attack_gradient

MOST_CLASSES = 1024
MOST_PIXELS = 1024
"""The largest shapes that the Triton kernel takes: of the logits, and of one image's plane of features."""


def takes(features: Tensor, weight: Tensor) -> bool:
    """Tell whether the Triton kernel takes features (B, C, H, W) before a classifier's weights (K, C)."""
    fits = features.dim() == 4 and weight.dim() == 2 and features.numel() > 0
    return (
        fits and features.dtype in (torch.bfloat16, torch.float16, torch.float32)
        and weight.dtype == torch.float32 and features.shape[1] == weight.shape[1]
        and 1 <= len(weight) <= MOST_CLASSES and features.shape[2] * features.shape[3] <= MOST_PIXELS
        and features.is_contiguous(memory_format=torch.channels_last)
    )  # fmt: skip


def attack_head(
    features: Tensor, weight: Tensor, bias: Tensor, target: Tensor, scale: float = 1.0, relu: bool = False
) -> Tensor:
    """Return the gradient at the features of scale · Σ KL(target ‖ softmax(logits)), like the features.

    The logits are weight · f + bias, of each channel's mean f over an image. All is computed in float64 for
    float64 features, else in float32, and rounded once.

    Args:
        features: (B, C, H, W), any floating dtype.
        weight: (K, C), floating.
        bias: (K,), floating.
        target: probabilities (B, K) or int64 labels (B,), see `attack_gradient`.
        scale: factor of the loss.
        relu: the features come from a ReLU: return the gradient in front of it, 0 where they are not above 0.
    """
    exact = torch.promote_types(features.dtype, torch.float32)
    wide = weight.to(exact)
    logits = F.linear(features.mean((2, 3), dtype=exact), wide, bias.to(exact))
    pooled = attack_gradient(logits, target, scale) @ wide
    share = pooled / (features.shape[2] * features.shape[3])
    found = share.to(features.dtype)[:, :, None, None].expand(features.shape)
    return torch.where(features > 0, found, 0) if relu else found
