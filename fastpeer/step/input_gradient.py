"""The distance between a network's input gradient and its teacher's, to be differentiated itself (KDIGA)."""

import torch
from torch import Tensor
from torch.nn import functional as F

from fastpeer.victims.interface import Victim


def input_gradient_distance(logits: Tensor, images: Tensor, labels: Tensor, teacher: Victim) -> Tensor:
    """Return ‖∇ₓ H(y, logits) − ∇ₓ H(y, teacher)‖₂ / B as a scalar whose gradient reaches the weights.

    Both entropies are means over the batch, the norm is that of the whole batch's gradient.

    Args:
        logits: (B, C), computed from `images` with its graph.
        images: a leaf (B, 3, H, W) that requires a gradient.
        labels: int64 (B,).
        teacher: in eval mode; its gradient is a constant.
    """
    wide = logits.to(torch.promote_types(logits.dtype, torch.float32))
    # The sum, not the mean: within float16's range, forward and back, and back again.
    entropy = F.cross_entropy(wide, labels, reduction="sum")
    (own,) = torch.autograd.grad(entropy, images, create_graph=True)
    seen = images.detach()
    seen = seen if teacher.input_dtype is None else seen.to(teacher.input_dtype)
    aim = teacher.input_gradient(seen, labels).to(own.dtype) / teacher.scale
    batch = len(labels)
    distance: Tensor = torch.linalg.vector_norm(own - aim)
    return distance / batch**2
