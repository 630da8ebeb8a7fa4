"""The loss of a whole method in one launch: values, gradients and accuracies of a table of terms."""

from collections.abc import Sequence
from dataclasses import replace
from functools import lru_cache

import torch
import triton
from torch import Tensor

from fastpeer.kernels.distill_loss import LossResult
from fastpeer.kernels.fused.loss_kernel import Table, loss_kernel
from fastpeer.kernels.refusal import require
from fastpeer.kernels.terms import CrossEntropy, Divergence, KernelTerm, LogitDistance

MAX_FORWARDS, MAX_BATCH, MAX_CLASSES = 8, 4096, 1024
_DTYPES = (torch.float32, torch.bfloat16, torch.float16)
_TILE, _PER_WARP = 256, 1024
"""Logits of a forward in one program, where a row is not longer; and of all forwards in a warp, whose
registers have to hold them. Rows that lie in one warp need not wait for other warps."""


def distill_loss(
    logits: Sequence[Tensor],
    labels: Tensor,
    terms: Sequence[KernelTerm[int]],
    scale: Tensor | float = 1.0,
    sample_weights: Sequence[Tensor] = (),
) -> LossResult:
    """Evaluate every term, the gradient of their sum, and the accuracy of each forward, in float32.

    Arguments and result are those of `fastpeer.kernels.distill_loss.distill_loss`, within limits:

    Args:
        logits: 1 to 8 tensors (B, C), float32, bfloat16 or float16, also mixed; 1 ≤ B ≤ 4096, 2 ≤ C ≤ 1024.
            What is not contiguous is copied first.
        labels: int64 (B,). In cross-entropies, a label that is no class yields NaN.
        terms: a kernel is compiled for each new list of terms.
        scale: number, or tensor with one element on the logits' device.
        sample_weights: (B,) each, of any floating dtype.

    Raises:
        KernelRefusal: an argument is outside of these limits.
    """
    _check(logits, labels, terms, scale, sample_weights)
    logits = tuple(forward.detach().contiguous() for forward in logits)
    result = LossResult(
        labels.new_empty(len(terms), dtype=torch.float32),
        tuple(torch.empty_like(forward) for forward in logits),
        labels.new_empty(len(logits)),
    )
    weights = tuple(weight.contiguous() for weight in sample_weights)
    with torch.cuda.device_of(labels):
        _launch(logits, labels.contiguous(), tuple(terms), scale, weights, result)
    return result


def _launch(
    logits: tuple[Tensor, ...],
    labels: Tensor,
    terms: tuple[KernelTerm[int], ...],
    scale: Tensor | float,
    sample_weights: tuple[Tensor, ...],
    result: LossResult,
) -> None:
    batch, classes = logits[0].shape
    columns = triton.next_power_of_2(classes)
    rows = max(1, _TILE // columns)
    programs = triton.cdiv(batch, rows)
    slots = triton.next_power_of_2(len(terms) + len(logits))
    loss_kernel[(programs,)](
        logits,
        labels,
        # An empty tuple has no type; without a term that refers to it, this is not read.
        sample_weights or (labels,),
        scale if isinstance(scale, Tensor) else float(scale),
        *result,
        partial_sums=result.values.new_empty(programs, slots, dtype=torch.float64),
        arrived=_counter(labels.device),
        batch=batch,
        per_sample=1 / batch,
        TABLE=_table(terms, classes),
        FORWARDS=len(logits),
        CLASSES=classes,
        ROWS=rows,
        COLUMNS=columns,
        SLOTS=slots,
        SCALE_IS_TENSOR=isinstance(scale, Tensor),
        num_warps=triton.next_power_of_2(triton.cdiv(len(logits) * rows * columns, _PER_WARP)),
        enable_fp_fusion=True,
    )


def _counter(device: torch.device) -> Tensor:
    """Return a zero for the kernel to count up and set back; launches that may overlap get different ones."""
    if device.type == "cuda" and torch.cuda.is_current_stream_capturing():
        # The graph's own, since it may be replayed on any stream.
        return torch.zeros(1, dtype=torch.int32, device=device)
    return _kept_counter(
        device, torch.cuda.current_stream(device).cuda_stream if device.type == "cuda" else 0
    )


@lru_cache
def _kept_counter(device: torch.device, stream: int) -> Tensor:
    return torch.zeros(1, dtype=torch.int32, device=device)


@lru_cache
def _table(terms: tuple[KernelTerm[int], ...], classes: int) -> Table:
    # Whole numbers as temperatures would be no floats to Triton either.
    exact = [
        replace(term, temperature=float(term.temperature)) if isinstance(term, Divergence) else term
        for term in terms
    ]
    factors = [_factors(term, classes) for term in terms]
    return Table(tuple(exact), tuple(value for value, _ in factors), tuple(slope for _, slope in factors))


def _factors(term: KernelTerm[int], classes: int) -> tuple[float, float]:
    """Return what the kernel multiplies a term's value and its gradients by, but for 1 / batch."""
    weight = float(term.weight)
    if isinstance(term, CrossEntropy):
        return weight, weight
    if term.reduction == "mean":
        weight /= classes
    if isinstance(term, LogitDistance):
        return weight, 2 * weight
    tau = float(term.temperature)
    return weight * tau**2, weight * tau


def _check(
    logits: Sequence[Tensor],
    labels: Tensor,
    terms: Sequence[KernelTerm[int]],
    scale: Tensor | float,
    sample_weights: Sequence[Tensor],
) -> None:
    _check_logits(logits)
    _check_of_batch(logits[0].shape[:1], labels, sample_weights)
    scales = [scale] if isinstance(scale, Tensor) else []
    for factor in scales:
        _require(factor.numel() == 1, f"scale must have one element, got {factor.numel()}")
    devices = {tensor.device for tensor in (*logits, labels, *scales, *sample_weights)}
    _require(len(devices) == 1, f"all tensors must be on one device, got {sorted(map(str, devices))}")
    _require(len(terms) > 0, "terms must be at least one, got none")
    for term in terms:
        _check_places(term, len(logits), len(sample_weights))


def _check_logits(logits: Sequence[Tensor]) -> None:
    _require(1 <= len(logits) <= MAX_FORWARDS, f"forwards must be 1 to {MAX_FORWARDS}, got {len(logits)}")
    shape = logits[0].shape
    for forward in logits:
        dtype = forward.dtype
        _require(dtype in _DTYPES, f"logits must be float32, bfloat16 or float16, got {dtype}")
        shapes = f"{tuple(shape)} and {tuple(forward.shape)}"
        _require(forward.shape == shape, f"logits must be of one shape, got {shapes}")
    _require(
        len(shape) == 2 and 1 <= shape[0] <= MAX_BATCH and 2 <= shape[1] <= MAX_CLASSES,
        f"logits must be (B, C) with B from 1 to {MAX_BATCH} and C from 2 to {MAX_CLASSES}, "
        f"got {tuple(shape)}",
    )


def _check_of_batch(batch: torch.Size, labels: Tensor, sample_weights: Sequence[Tensor]) -> None:
    fits = labels.dtype == torch.int64 and labels.shape == batch
    _require(fits, f"labels must be int64 {tuple(batch)}, got {labels.dtype} {tuple(labels.shape)}")
    for weight in sample_weights:
        fits = weight.is_floating_point() and weight.shape == batch
        found = f"{weight.dtype} {tuple(weight.shape)}"
        _require(fits, f"sample weights must be floating {tuple(batch)}, got {found}")


def _check_places(term: KernelTerm[int], forwards: int, sample_weights: int) -> None:
    ends = [term.prediction] if isinstance(term, CrossEntropy) else [term.prediction, term.target]
    known = all(0 <= end < forwards for end in ends)
    _require(known, f"a term's forwards must be 0 to {forwards - 1}, got {term}")
    place = term.sample_weight
    known = place is None or (isinstance(place, int) and 0 <= place < sample_weights)
    _require(known, f"a term's sample weight must be one of the {sample_weights} given, got {term}")


def _require(fulfilled: bool, message: str) -> None:
    require(fulfilled, "fused loss", message)
