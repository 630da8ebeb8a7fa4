"""The loss of a whole method in one launch: values, gradients and accuracies of a table of terms."""

from collections.abc import Sequence
from functools import lru_cache

import torch
import triton
from torch import Tensor

from fastpeer.kernels.distill_loss import CrossEntropyTerm, DivergenceTerm, LossResult, Term
from fastpeer.kernels.fused.loss_kernel import Row, Table, loss_kernel
from fastpeer.kernels.refusal import KernelRefusal

MAX_FORWARDS, MAX_BATCH, MAX_CLASSES = 8, 4096, 1024
_DTYPES = (torch.float32, torch.bfloat16, torch.float16)
_TILE, _PER_WARP = 256, 1024
"""Logits of a forward in one program, where a row is not longer; and of all forwards in a warp, whose
registers have to hold them. Rows that lie in one warp need not wait for other warps."""


def distill_loss(
    logits: Sequence[Tensor],
    labels: Tensor,
    terms: Sequence[Term],
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
    logits = tuple(one.detach().contiguous() for one in logits)
    result = LossResult(
        labels.new_empty(len(terms), dtype=torch.float32),
        tuple(torch.empty_like(one) for one in logits),
        labels.new_empty(len(logits)),
    )
    weights = tuple(one.contiguous() for one in sample_weights)
    with torch.cuda.device_of(labels):
        _launch(logits, labels.contiguous(), tuple(terms), scale, weights, result)
    return result


def _launch(
    logits: tuple[Tensor, ...],
    labels: Tensor,
    terms: tuple[Term, ...],
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
def _table(terms: tuple[Term, ...], classes: int) -> Table:
    return Table(tuple(_row(term, classes) for term in terms))


def _row(term: Term, classes: int) -> Row:
    weight = float(term.weight)
    if isinstance(term, CrossEntropyTerm):
        return Row("labels", term.prediction, None, False, 1.0, term.sample_weight, weight, weight)
    if term.reduction == "mean":
        weight /= classes
    ends = (term.prediction, term.target, term.target_grad)
    if isinstance(term, DivergenceTerm):
        tau = float(term.temperature)
        return Row("divergence", *ends, tau, term.sample_weight, weight * tau**2, weight * tau)
    return Row("distance", *ends, 1.0, term.sample_weight, weight, 2 * weight)


def _check(
    logits: Sequence[Tensor],
    labels: Tensor,
    terms: Sequence[Term],
    scale: Tensor | float,
    sample_weights: Sequence[Tensor],
) -> None:
    _need(1 <= len(logits) <= MAX_FORWARDS, f"1 to {MAX_FORWARDS} forwards, not {len(logits)}")
    _need(len(terms) > 0, "at least one term")
    shape = logits[0].shape
    for one in logits:
        _need(one.dtype in _DTYPES, f"float32, bfloat16 or float16 logits, not {one.dtype}")
        _need(one.shape == shape, f"logits of one shape, not {tuple(shape)} and {tuple(one.shape)}")
    _need(
        len(shape) == 2 and 1 <= shape[0] <= MAX_BATCH and 2 <= shape[1] <= MAX_CLASSES,
        f"logits (B, C) with B from 1 to {MAX_BATCH} and C from 2 to {MAX_CLASSES}, not {tuple(shape)}",
    )
    _need(
        labels.dtype == torch.int64 and labels.shape == shape[:1],
        f"int64 labels ({shape[0]},), not {labels.dtype} {tuple(labels.shape)}",
    )
    for one in sample_weights:
        _need(
            one.is_floating_point() and one.shape == shape[:1],
            (f"floating sample weights ({shape[0]},), not {one.dtype} {tuple(one.shape)}"),
        )
    scales = [scale] if isinstance(scale, Tensor) else []
    _need(all(one.numel() == 1 for one in scales), "a scale with one element")
    devices = {one.device for one in (*logits, labels, *scales, *sample_weights)}
    _need(len(devices) == 1, f"all tensors on one device, not on {sorted(map(str, devices))}")
    for term in terms:
        _check_numbers(term, len(logits), len(sample_weights))


def _check_numbers(term: Term, forwards: int, sample_weights: int) -> None:
    ends = [term.prediction] if isinstance(term, CrossEntropyTerm) else [term.prediction, term.target]
    _need(all(0 <= end < forwards for end in ends), f"terms on forwards 0 to {forwards - 1}: {term}")
    known = term.sample_weight is None or 0 <= term.sample_weight < sample_weights
    _need(known, f"a sample weight for each one that a term refers to: {term}")


def _need(fulfilled: bool, what: str) -> None:
    if not fulfilled:
        raise KernelRefusal(f"the fused loss needs {what}")
