"""One step of projected gradient ascent in the L2 ball."""

import torch
from torch import Tensor


def pgd_l2_update(
    adversarial: Tensor,
    gradient: Tensor,
    images: Tensor,
    step_size: float,
    epsilon: float,
    *,
    copy: torch.dtype | None = None,
    nonfinite_count: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """Step along each image's normalised gradient, then into the ball around `images`, then into [0, 1].

    The order (step, ball, pixel range) is that of Croce and Hein's AutoAttack and of torchattacks' PGDL2.
    Neither clamping nor rounding by more than the last place leads out of the ball. Those add 1e-10 or so to
    the gradient's norm and hardly move an image whose gradient is smaller; here any gradient above zero is
    a whole step.

    Args:
        adversarial: float32 or float64, (B, ...).
        gradient: of the same shape, any floating dtype; an image whose gradient is zero does not step, nor
            does a pixel where it is NaN. Infinite values outweigh all others.
        images: like `adversarial`.
        step_size: L2 distance by which the step moves each image.
        epsilon: radius of the ball.
        copy: dtype of a second result, for a network of lower precision.
        nonfinite_count: int64, one element, to which the number of NaN and infinite values in the gradient is
            added.

    Returns:
        The updated images, in the dtype of `adversarial`, and the same in `copy`'s dtype; without `copy`,
        twice the same tensor. Norms are computed in float64 if images or gradient are float64, else in
        float32.
    """
    if nonfinite_count is not None:
        nonfinite_count += (~gradient.isfinite()).sum()
    climb = gradient.to(torch.promote_types(gradient.dtype, adversarial.dtype))
    moved = adversarial + step_size * _normalized(climb).to(adversarial.dtype)
    offset = moved - images
    distance = _norm(offset)
    # Not min(1, epsilon / distance): an image that is inside stays as it is, to the last bit.
    updated = torch.where(distance > epsilon, images + offset * (epsilon / distance), moved).clamp_(0, 1)
    return updated, updated if copy is None else updated.to(copy)


def _normalized(gradient: Tensor) -> Tensor:
    """Divide each image's gradient by its L2 norm; zero stays zero, and so does NaN."""
    gradient = gradient.nan_to_num(nan=0.0)
    # Its largest value becomes 1: the squares of a confident network's gradients would be zero in float32.
    largest = gradient.abs().amax(dim=_each_image(gradient), keepdim=True)
    scaled = gradient / torch.where(largest > 0, largest, 1)
    norm = _norm(scaled)
    return scaled / torch.where(norm > 0, norm, 1)


def _norm(images: Tensor) -> Tensor:
    norm: Tensor = torch.linalg.vector_norm(images, dim=_each_image(images), keepdim=True)
    return norm


def _each_image(images: Tensor) -> tuple[int, ...]:
    return tuple(range(1, images.dim()))
