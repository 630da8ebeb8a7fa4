"""The gradient at the logits that the attacks climb, in one launch."""

import torch
import triton
import triton.language as tl
from torch import Tensor

from fastpeer.kernels.fused.softmax import one_hot, softmax

MAX_CLASSES = 1024
_TILE = 256
"""Logits of a warp, and in one program, where a row is not longer: eight for each thread."""


def attack_gradient(logits: Tensor, target: Tensor, scale: float = 1.0) -> Tensor:
    """Gradient at the logits of scale · Σ KL(target ‖ softmax(logits)), the loss that the attacks climb.

    Arguments and result are those of `fastpeer.kernels.attack_gradient.attack_gradient`. What is not
    contiguous is copied first. A label that is no class yields a row of NaN.

    Raises:
        ValueError: a shape or dtype does not fit, or there are more than 1024 classes.
    """
    _check(logits, target)
    batch, classes = logits.shape
    logits, target = logits.detach().contiguous(), target.detach().contiguous()
    gradient = torch.empty_like(logits)
    columns = triton.next_power_of_2(classes)
    rows = max(1, _TILE // columns)
    with torch.cuda.device_of(logits):
        _attack_gradient[(triton.cdiv(batch, rows),)](
            logits,
            target,
            gradient,
            scale,
            batch,
            CLASSES=classes,
            ROWS=rows,
            COLUMNS=columns,
            num_warps=max(1, columns // _TILE),
            enable_fp_fusion=True,
        )
    return gradient


def _check(logits: Tensor, target: Tensor) -> None:
    shape = tuple(logits.shape)
    if not logits.is_floating_point() or len(shape) != 2 or not 1 <= shape[1] <= MAX_CLASSES:
        raise ValueError(
            "the fused attack gradient needs floating logits (B, C) with at most "
            f"{MAX_CLASSES} classes, not {logits.dtype} {shape}"
        )
    fits = target.shape == shape if target.is_floating_point() else target.shape == shape[:1]
    if not fits or not (target.is_floating_point() or target.dtype == torch.int64):
        raise ValueError(
            f"the fused attack gradient needs floating probabilities {shape} or int64 labels {shape[:1]}, "
            f"not {target.dtype} {tuple(target.shape)}"
        )
    if logits.device != target.device:
        raise ValueError(
            "the fused attack gradient needs logits and target on one device, "
            f"not on {logits.device} and {target.device}"
        )


@triton.jit(do_not_specialize=["batch"])
def _attack_gradient(
    logits,  # (batch, CLASSES)
    target,  # like logits, or labels (batch,)
    gradient,  # like logits
    scale: tl.float64,
    batch,
    CLASSES: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
):
    exact: tl.constexpr = tl.float64 if logits.dtype.element_ty == tl.float64 else tl.float32
    row = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    column = tl.arange(0, COLUMNS)[None, :]
    inside = column < CLASSES
    tile = row[:, None].to(tl.int64) * CLASSES + column
    # Rows beyond the batch read as zeros, and are dropped.
    known = (row < batch)[:, None] & inside
    probability = softmax(tl.load(logits + tile, mask=known, other=0.0).to(exact), inside, 1.0)
    if target.dtype.element_ty == tl.int64:
        label = tl.load(target + row, mask=row < batch, other=0)
        expected = one_hot(label, column, CLASSES).to(exact)
    else:
        expected = tl.load(target + tile, mask=known, other=0.0).to(exact)
    climb = (probability - expected) * tl.full((), scale, exact)
    tl.store(gradient + tile, climb.to(gradient.dtype.element_ty), mask=known)
