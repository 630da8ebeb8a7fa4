"""The gradient at the logits that the attacks climb, in one launch."""

import torch
import triton
import triton.language as tl
from torch import Tensor

from fastpeer.kernels.fused.softmax import one_hot, softmax
from fastpeer.kernels.fused.tile import check_logits, tile_of, tiling
from fastpeer.kernels.refusal import KernelRefusal


def attack_gradient(logits: Tensor, target: Tensor, scale: float = 1.0) -> Tensor:
    """Gradient at the logits of scale · Σ KL(target ‖ softmax(logits)), the loss that the attacks climb.

    Arguments and result are those of `fastpeer.kernels.attack_gradient.attack_gradient`. What is not
    contiguous is copied first. A label that is no class yields a row of NaN.

    Raises:
        KernelRefusal: a shape or dtype does not fit, or there are more than 1024 classes.
    """
    _check(logits, target)
    batch, classes = logits.shape
    logits, target = logits.detach().contiguous(), target.detach().contiguous()
    gradient = torch.empty_like(logits)
    grid, options = tiling(batch, classes)
    with torch.cuda.device_of(logits):
        _attack_gradient[grid](logits, target, gradient, scale, batch, **options, enable_fp_fusion=True)
    return gradient


def _check(logits: Tensor, target: Tensor) -> None:
    check_logits(logits, "fused attack gradient")
    shape = tuple(logits.shape)
    fits = target.shape == shape if target.is_floating_point() else target.shape == shape[:1]
    if not fits or not (target.is_floating_point() or target.dtype == torch.int64):
        raise KernelRefusal(
            f"fused attack gradient: target must be floating probabilities {shape} or int64 labels "
            f"{shape[:1]}, got {target.dtype} {tuple(target.shape)}"
        )
    if logits.device != target.device:
        raise KernelRefusal(
            "fused attack gradient: logits and target must be on one device, "
            f"got {logits.device} and {target.device}"
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
    row, column, tile = tile_of(batch, CLASSES, ROWS, COLUMNS)
    inside = column < CLASSES
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
