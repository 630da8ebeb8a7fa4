"""Softmax of a tile of rows, as the kernels share it."""

import triton
import triton.language as tl


@triton.jit
def exp(x):
    """e^x for x ≤ 0, in the dtype of x.

    tl.exp rounds x·log2(e) to float32, and what is lost is relative to x, not to 1. The GPU's own power of 2
    is off by 2⁻²² besides, and exact for whole numbers alone: only those are left to it, and the rest is
    Taylor's series on |rest| ≤ log(2) / 2.
    """
    if x.dtype == tl.float64:
        return tl.exp(x)
    else:
        # Zero in float32 from here on down; an infinite x would have no remainder.
        x = tl.where(x < -150.0, -150.0, x)
        whole = tl.floor(x * 1.4426950408889634 + 0.5)
        # log(2) in two parts, of which the first has so few digits that its multiples are exact.
        rest = (x - whole * 0.693359375) + whole * 2.12194440054690583e-4
        upper = ((rest * (1 / 5040) + 1 / 720) * rest + 1 / 120) * rest + 1 / 24
        series = (((upper * rest + 1 / 6) * rest + 0.5) * rest + 1.0) * rest + 1.0
        return series * tl.exp2(whole)


@triton.jit
def log(x):
    """Logarithm of x ≥ 1, in the dtype of x.

    The GPU's own, of base 2, is off by 2⁻²² of its value: of hundreds of classes, several times PyTorch's
    error. One step of Newton's mends that.
    """
    found = tl.log(x)
    return found if x.dtype == tl.float64 else found + (x * exp(-found) - 1.0)


@triton.jit
def softmax(logits, inside, TEMPERATURE: tl.constexpr):
    """Probabilities of logits / TEMPERATURE, zero where not `inside` (columns that pad the tile)."""
    powers = tl.where(inside, exp(_shifted(logits, inside, TEMPERATURE)), 0.0)
    return _divided(powers, tl.sum(powers, axis=1)[:, None])


@triton.jit
def log_softmax(logits, inside, TEMPERATURE: tl.constexpr):
    """Log-probabilities of logits / TEMPERATURE, zero where not `inside`."""
    shifted = _shifted(logits, inside, TEMPERATURE)
    powers = tl.where(inside, exp(shifted), 0.0)
    return tl.where(inside, shifted - log(tl.sum(powers, axis=1))[:, None], 0.0)


@triton.jit
def _shifted(logits, inside, TEMPERATURE: tl.constexpr):
    largest = tl.max(tl.where(inside, logits, float("-inf")), axis=1)
    shifted = tl.where(inside, logits - largest[:, None], 0.0)
    return shifted if TEMPERATURE == 1.0 else _divided(shifted, TEMPERATURE)


@triton.jit
def _divided(x, y):
    # A plain division is only approximate in float32.
    return x / y if x.dtype == tl.float64 else tl.div_rn(x, y)


@triton.jit
def one_hot(label, column, CLASSES: tl.constexpr):
    """1 where a column is the label's, 0 elsewhere; NaN in the whole row of a label that is no class."""
    known = (label >= 0) & (label < CLASSES)
    hot = tl.where(column == label[:, None], 1.0, 0.0)
    return tl.where(known[:, None], hot, float("nan"))
