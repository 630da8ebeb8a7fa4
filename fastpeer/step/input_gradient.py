"""The distance between a network's input gradient and its teacher's (KDIGA); differentiable."""

import torch
from torch import Tensor
from torch.nn import functional as F

from fastpeer.victims.interface import Victim


def input_gradient_distance(logits: Tensor, images: Tensor, labels: Tensor, teacher: Victim) -> Tensor:
    """Return ‖∇ₓ H(y, logits) − ∇ₓ H(y, teacher)‖₂ / B, a scalar whose gradient reaches the weights.

    H is the cross-entropy, a mean over the batch; the norm is that of the whole batch's gradient.

    Args:
        logits: (B, C), computed from `images` with the autograd graph.
        images: a leaf (B, 3, H, W) that requires a gradient.
        labels: int64 (B,).
        teacher: in eval mode; its gradient is a constant.
    """
    wide = logits.to(torch.promote_types(logits.dtype, torch.float32))
    # Summed, not averaged: gradients 1/B as large could leave float16's range, in this backward pass and in
    # the one through it. The mean's 1/B and the distance's own are applied at the end.
    entropy = F.cross_entropy(wide, labels, reduction="sum")
    (gradient,) = torch.autograd.grad(entropy, images, create_graph=True)
    teacher_images = images.detach()
    if teacher.input_dtype is not None:
        teacher_images = teacher_images.to(teacher.input_dtype)
    target = teacher.input_gradient(teacher_images, labels).to(gradient.dtype) / teacher.scale
    distance: Tensor = torch.linalg.vector_norm(gradient - target)
    return distance / len(labels) ** 2
