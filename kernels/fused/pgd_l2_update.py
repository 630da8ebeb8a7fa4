"""One step of projected gradient ascent in the L2 ball: a program for each image, in one launch."""

import torch
import triton
import triton.language as tl
from torch import Tensor

from fastpeer.kernels.fused.pgd_update import launchable, not_finite

_BLOCK = 2048
"""Values of an image at a time: four for each thread, 16 bytes in float32."""
_WARPS = 16


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

    Arguments and results are those of `fastpeer.kernels.pgd_l2_update.pgd_l2_update`, up to the order in
    which squares are summed; that order is fixed, so equal arguments give equal results. The results have
    the memory format of `adversarial`; where gradient or images have another one, they are converted first,
    which is a launch more.

    Raises:
        KernelRefusal: a shape, dtype or device does not fit.
    """
    adversarial, gradient, images, updated, low = launchable(
        adversarial, gradient, images, copy, nonfinite_count
    )
    with torch.cuda.device_of(updated):
        _pgd_l2_update[(len(updated),)](
            adversarial,
            gradient,
            images,
            updated,
            low,
            updated if nonfinite_count is None else nonfinite_count,
            step_size,
            epsilon,
            VALUES=updated[0].numel(),
            COPIES=low is not updated,
            COUNTS=nonfinite_count is not None,
            BLOCK=_BLOCK,
            num_warps=_WARPS,
            # As few roundings apart from PyTorch as the sums allow.
            enable_fp_fusion=False,
        )
    return updated, low


@triton.jit
def _pgd_l2_update(
    adversarial,  # (B, VALUES)
    gradient,
    images,
    updated,
    low,  # like updated, in another dtype; only where COPIES
    nonfinite_count,  # (1,), only where COUNTS
    step_size: tl.float64,
    epsilon: tl.float64,
    VALUES: tl.constexpr,
    COPIES: tl.constexpr,
    COUNTS: tl.constexpr,
    BLOCK: tl.constexpr,
):
    exact: tl.constexpr = updated.dtype.element_ty
    everything: tl.constexpr = tl.PropagateNan.ALL
    step, radius = tl.full((), step_size, exact), tl.full((), epsilon, exact)
    begin = tl.program_id(0).to(tl.int64) * VALUES
    largest, norm = _scale_and_norm(gradient + begin, exact, nonfinite_count, VALUES, COUNTS, BLOCK)

    squares = tl.zeros((BLOCK,), exact)
    for first in range(0, VALUES, BLOCK):
        value = first + tl.arange(0, BLOCK)
        moved = _moved(adversarial, gradient, begin, value, step, largest, norm, VALUES)
        offset = moved - tl.load(images + begin + value, mask=value < VALUES, other=0.0)
        squares += offset * offset
    distance = _root(tl.sum(squares, axis=0))
    shrink = _divided(radius, tl.where(distance > radius, distance, 1.0).to(exact))

    for first in range(0, VALUES, BLOCK):
        value = first + tl.arange(0, BLOCK)
        moved = _moved(adversarial, gradient, begin, value, step, largest, norm, VALUES)
        center = tl.load(images + begin + value, mask=value < VALUES, other=0.0)
        moved = tl.where(distance > radius, center + (moved - center) * shrink, moved)
        moved = tl.maximum(moved, 0.0, propagate_nan=everything)
        moved = tl.minimum(moved, 1.0, propagate_nan=everything)
        tl.store(updated + begin + value, moved, mask=value < VALUES)
        if COPIES:
            tl.store(low + begin + value, moved.to(low.dtype.element_ty), mask=value < VALUES)


@triton.jit
def _scale_and_norm(
    gradient,
    exact: tl.constexpr,
    nonfinite_count,
    VALUES: tl.constexpr,
    COUNTS: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """Return an image's largest gradient, and the norm of the gradient divided by that; 1 for zero."""
    kind: tl.constexpr = tl.float64 if gradient.dtype.element_ty == tl.float64 else exact
    peaks = tl.zeros((BLOCK,), kind)
    lost = tl.zeros((BLOCK,), tl.int32)
    for first in range(0, VALUES, BLOCK):
        value = first + tl.arange(0, BLOCK)
        climb = tl.load(gradient + value, mask=value < VALUES, other=0.0).to(kind)
        lost += not_finite(climb).to(tl.int32)
        peaks = tl.maximum(peaks, tl.abs(_finite(climb)))
    if COUNTS:
        found = tl.sum(lost, axis=0).to(tl.int64)
        tl.atomic_add(nonfinite_count, found, mask=found > 0, sem="relaxed")
    largest = tl.max(peaks, axis=0)
    largest = tl.where(largest > 0, largest, 1.0).to(kind)

    squares = tl.zeros((BLOCK,), kind)
    for first in range(0, VALUES, BLOCK):
        value = first + tl.arange(0, BLOCK)
        climb = tl.load(gradient + value, mask=value < VALUES, other=0.0).to(kind)
        scaled = _divided(_finite(climb), largest)
        squares += scaled * scaled
    norm = _root(tl.sum(squares, axis=0))
    return largest, tl.where(norm > 0, norm, 1.0).to(kind)


@triton.jit
def _moved(adversarial, gradient, begin, value, step, largest, norm, VALUES: tl.constexpr):
    """Return values of the image after the step, before the projection; zero behind its end."""
    climb = tl.load(gradient + begin + value, mask=value < VALUES, other=0.0).to(largest.dtype)
    direction = _divided(_divided(_finite(climb), largest), norm).to(step.dtype)
    return tl.load(adversarial + begin + value, mask=value < VALUES, other=0.0) + step * direction


@triton.jit
def _finite(climb):
    """Replace NaN by zero and infinity by the largest number, as `Tensor.nan_to_num` does."""
    most = 1.7976931348623157e308 if climb.dtype == tl.float64 else 3.4028234663852886e38
    climb = tl.where(climb != climb, 0.0, climb)
    return tl.minimum(tl.maximum(climb, -most), most)


@triton.jit
def _root(x):
    # A plain root, like a plain division, is only approximate in float32.
    return tl.sqrt(x) if x.dtype == tl.float64 else tl.sqrt_rn(x)


@triton.jit
def _divided(x, y):
    return x / y if x.dtype == tl.float64 else tl.div_rn(x, y)
