"""The gradients at the logits of two networks that an attack climbs through both at once, in one launch."""

import torch
import triton
import triton.language as tl
from torch import Tensor

from fastpeer.kernels.fused.softmax import softmax
from fastpeer.kernels.fused.tile import check_logits, tile_of, tiling
from fastpeer.kernels.refusal import KernelRefusal


def moving_attack_gradient(
    logits: Tensor, target_logits: Tensor, scale: float = 1.0
) -> tuple[Tensor, Tensor]:
    """Gradients of scale · Σ KL(softmax(target_logits) ‖ softmax(logits)) at the logits of both networks.

    Arguments and results are those of `fastpeer.kernels.moving_attack_gradient.moving_attack_gradient`. What
    is not contiguous is copied first.

    Raises:
        KernelRefusal: a shape or dtype does not fit, or there are more than 1024 classes.
    """
    _check(logits, target_logits)
    batch, classes = logits.shape
    logits, target_logits = logits.detach().contiguous(), target_logits.detach().contiguous()
    gradients = torch.empty_like(logits), torch.empty_like(target_logits)
    grid, options = tiling(batch, classes)
    with torch.cuda.device_of(logits):
        _moving_attack_gradient[grid](
            logits, target_logits, *gradients, scale, batch, **options, enable_fp_fusion=True
        )
    return gradients


def _check(logits: Tensor, target_logits: Tensor) -> None:
    kernel = "fused moving attack gradient"
    check_logits(logits, kernel)
    check_logits(target_logits, kernel)
    if logits.shape != target_logits.shape or logits.device != target_logits.device:
        raise KernelRefusal(
            f"{kernel}: logits must be of one shape on one device, got {tuple(logits.shape)} on "
            f"{logits.device} and {tuple(target_logits.shape)} on {target_logits.device}"
        )


@triton.jit(do_not_specialize=["batch"])
def _moving_attack_gradient(
    logits,  # (batch, CLASSES)
    target_logits,  # (batch, CLASSES)
    at_student,  # like logits
    at_teacher,  # like target_logits
    scale: tl.float64,
    batch,
    CLASSES: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
):
    wide: tl.constexpr = logits.dtype.element_ty == tl.float64 or target_logits.dtype.element_ty == tl.float64
    exact: tl.constexpr = tl.float64 if wide else tl.float32
    row, column, tile = tile_of(batch, CLASSES, ROWS, COLUMNS)
    inside = column < CLASSES
    # Rows beyond the batch read as zeros, and are dropped.
    known = (row < batch)[:, None] & inside
    student = tl.load(logits + tile, mask=known, other=0.0).to(exact)
    teacher = tl.load(target_logits + tile, mask=known, other=0.0).to(exact)
    factor = tl.full((), scale, exact)
    expected = softmax(teacher, inside, 1.0)
    climb = (softmax(student, inside, 1.0) - expected) * factor
    tl.store(at_student + tile, climb.to(at_student.dtype.element_ty), mask=known)
    log_ratio = _log_ratio(teacher, student, inside)
    climb = expected * (log_ratio - tl.sum(expected * log_ratio, axis=1)[:, None]) * factor
    tl.store(at_teacher + tile, climb.to(at_teacher.dtype.element_ty), mask=known)


@triton.jit
def _log_ratio(teacher, student, inside):
    """Return log p_T − log p_S, less its value for the teacher's first choice: the mean is taken off anyway.

    Where the teacher is sure, all but the last digits of that choice's own would cancel with the mean.
    """
    largest = tl.max(tl.where(inside, teacher, float("-inf")), axis=1)[:, None]
    # Of equal choices, the one that the student likes best.
    beside = tl.max(tl.where(inside & (teacher == largest), student, float("-inf")), axis=1)[:, None]
    return tl.where(inside, (teacher - largest) - (student - beside), 0.0)
