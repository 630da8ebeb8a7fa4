"""The gradients at the logits of two networks that an attack climbs through both at once."""

import torch
from torch import Tensor


def moving_attack_gradient(
    logits: Tensor, target_logits: Tensor, scale: float = 1.0
) -> tuple[Tensor, Tensor]:
    """Gradients of scale · Σ KL(softmax(target_logits) ‖ softmax(logits)) at the logits of both networks.

    The attack of AdaAD (Huang et al., CVPR 2023) climbs this divergence: teacher and student both see the
    adversarial image, so that the target moves with it.

    Args:
        logits: the student's, (B, C), any floating dtype.
        target_logits: the teacher's, (B, C), any floating dtype, also another one. If either is float64, both
            gradients are computed in float64, else in float32.
        scale: factor, applied before the results are rounded.

    Returns:
        At the student, (p_S − p_T) · scale, in the dtype of `logits`; at the teacher, in its dtype,
        p_T · (log p_T − log p_S − KL) · scale, where KL is that of the row; (B, C) each.
    """
    dtype = torch.promote_types(torch.promote_types(logits.dtype, target_logits.dtype), torch.float32)
    student, teacher = logits.to(dtype), target_logits.to(dtype)
    expected = torch.softmax(teacher, dim=1)
    at_student = torch.softmax(student, dim=1) - expected
    # Logarithms by themselves: where a class underflows on either side, the gradients stay finite.
    log_ratio = torch.log_softmax(teacher, dim=1) - torch.log_softmax(student, dim=1)
    at_teacher = expected * (log_ratio - (expected * log_ratio).sum(dim=1, keepdim=True))
    return (at_student * scale).to(logits.dtype), (at_teacher * scale).to(target_logits.dtype)
