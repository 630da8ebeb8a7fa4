"""One step of projected gradient ascent in the L-infinity ball."""

import torch
from torch import Tensor


def pgd_update(
    adversarial: Tensor,
    gradient: Tensor,
    images: Tensor,
    step_size: float,
    epsilon: float,
    *,
    copy: torch.dtype | None = None,
    nonfinite_count: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """Step along the gradient's sign, then back into the `epsilon` box around `images`, then into [0, 1].

    The order (step, box, pixel range) is that of the official codes.

    Args:
        adversarial: float32 or float64, any shape.
        gradient: of the same shape, any floating dtype; where it is zero or NaN, its pixel does not step.
        images: like `adversarial`.
        step_size: how far the step moves each pixel.
        epsilon: half the width of the box.
        copy: dtype of a second result, for a network of lower precision.
        nonfinite_count: int64, one element, to which the number of NaN and infinite values in the gradient is
            added.

    Returns:
        The updated images, in the dtype of `adversarial`, and the same in `copy`'s dtype; without `copy`,
        twice the same tensor.
    """
    if nonfinite_count is not None:
        nonfinite_count += (~gradient.isfinite()).sum()
    # sign(NaN) is 0 in PyTorch.
    moved = adversarial + step_size * gradient.sign().to(adversarial.dtype)
    updated = torch.clamp(moved, images - epsilon, images + epsilon).clamp_(0, 1)
    return updated, updated if copy is None else updated.to(copy)
