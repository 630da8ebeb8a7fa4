"""The kernel of the fused loss, and the table that it is compiled for."""

from dataclasses import dataclass

import triton
import triton.language as tl

from fastpeer.kernels.fused.softmax import log_softmax, one_hot, softmax
from fastpeer.kernels.terms import KernelTerm


@dataclass(frozen=True)
class Table:
    """The terms that the kernel is compiled for, and what it multiplies their formulas by.

    An object, since Triton's compiler takes tuples apart and loses the names in them. The factors are numbers
    in it, and no properties of the terms, since Triton knows a compiled kernel by its source and by the
    `repr` of its constants: on disk, one with the factors of an older fastpeer would be taken for this one's.

    Attributes:
        terms: forwards and sample weights by their places.
        value_factors: of a term's value for each sample, but for 1 / batch.
        gradient_factors: of its gradients at the logits, but for 1 / batch.
    """

    terms: tuple[KernelTerm[int], ...]
    value_factors: tuple[float, ...]
    gradient_factors: tuple[float, ...]


# A batch of 1, or of a multiple of 16, is not worth a kernel of its own.
@triton.jit(do_not_specialize=["batch"])
def loss_kernel(  # noqa: C901 - all of it is one launch
    logits,  # M of (batch, CLASSES)
    labels,  # (batch,)
    sample_weights,  # any number of (batch,)
    scale,  # number, or pointer to one
    values,  # (terms,)
    gradients,  # like logits
    correct,  # (M,)
    partial_sums,  # (programs, SLOTS): a program's share of each value and each number of correct ones
    arrived,  # (1,): how many programs have written theirs
    batch,
    per_sample: tl.float64,  # 1 / batch
    TABLE: tl.constexpr,
    FORWARDS: tl.constexpr,
    CLASSES: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
    SLOTS: tl.constexpr,
    SCALE_IS_TENSOR: tl.constexpr,
):
    """Evaluate a table on ROWS samples; the last program to finish adds up what all have found."""
    row = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    present = row < batch
    # Beyond the end of the batch, its last row is computed again and dropped.
    row = tl.minimum(row, batch - 1)
    column = tl.arange(0, COLUMNS)[None, :]
    inside = column < CLASSES
    tile = row[:, None] * CLASSES + column
    label = tl.load(labels + row)
    # All at once, so that softmaxes which several terms need are recognised as equal.
    rows, weights = (), ()  # Triton 3.4 has no list comprehensions.
    for index in tl.static_range(FORWARDS):
        rows += (tl.load(logits[index] + tile, mask=inside, other=0.0).to(tl.float32),)  # type: ignore[assignment]
    for index in tl.static_range(len(sample_weights)):
        weights += (tl.load(sample_weights[index] + row).to(tl.float32),)  # type: ignore[assignment]
    factor = tl.load(scale).to(tl.float32) if SCALE_IS_TENSOR else scale
    sums = partial_sums + tl.program_id(0) * SLOTS

    for index in tl.static_range(len(TABLE.terms)):
        share = _value(rows, inside, column, label, TABLE, index, CLASSES)
        if TABLE.terms[index].sample_weight is not None:
            share *= weights[TABLE.terms[index].sample_weight]
        # Few numbers are added from here on, so that float64 costs nothing.
        total = tl.sum(tl.where(present, share, 0.0).to(tl.float64), axis=0)
        tl.store(sums + index, total * (TABLE.value_factors[index] * per_sample))

    for forward in tl.static_range(FORWARDS):
        hits = present & (_first_largest(rows[forward], inside, column, COLUMNS) == label)
        tl.store(sums + len(TABLE.terms) + forward, tl.sum(hits.to(tl.float64), axis=0))
        gradient = tl.zeros((ROWS, COLUMNS), tl.float32)
        for index in tl.static_range(len(TABLE.terms)):
            share = tl.full((ROWS, 1), TABLE.gradient_factors[index] * per_sample, tl.float32)
            if TABLE.terms[index].sample_weight is not None:
                share *= weights[TABLE.terms[index].sample_weight][:, None]
            if TABLE.terms[index].prediction == forward:
                gradient += share * _slope_at_prediction(rows, inside, column, label, TABLE, index, CLASSES)
            if TABLE.terms[index].target_grad and TABLE.terms[index].target == forward:
                gradient += share * _slope_at_target(rows, inside, TABLE, index)
        gradient = (gradient * factor).to(gradients[forward].dtype.element_ty)
        tl.store(gradients[forward] + tile, gradient, mask=present[:, None] & inside)

    # All threads of this program have written before one of them says so.
    tl.debug_barrier()
    if tl.atomic_add(arrived, 1, sem="acq_rel") == tl.num_programs(0) - 1:
        _add_up(partial_sums, values, correct, len(TABLE.terms), FORWARDS, SLOTS)
        tl.store(arrived, 0)


@triton.jit
def _value(rows, inside, column, label, TABLE: tl.constexpr, index: tl.constexpr, CLASSES: tl.constexpr):
    """Value of a term for each sample, without its factor."""
    prediction = rows[TABLE.terms[index].prediction]
    if TABLE.terms[index].kind == "cross_entropy":
        return -tl.sum(one_hot(label, column, CLASSES) * log_softmax(prediction, inside, 1.0), axis=1)
    else:
        target = rows[TABLE.terms[index].target]
        if TABLE.terms[index].kind == "logit_distance":
            return tl.sum((prediction - target) * (prediction - target), axis=1)
        else:
            probability = softmax(target, inside, TABLE.terms[index].temperature)
            return tl.sum(probability * _log_ratio(prediction, target, inside, TABLE, index), axis=1)


@triton.jit
def _slope_at_prediction(
    rows, inside, column, label, TABLE: tl.constexpr, index: tl.constexpr, CLASSES: tl.constexpr
):
    """Gradient of a term at the logits of its prediction, without its factor."""
    prediction = rows[TABLE.terms[index].prediction]
    if TABLE.terms[index].kind == "cross_entropy":
        return softmax(prediction, inside, 1.0) - one_hot(label, column, CLASSES)
    else:
        target = rows[TABLE.terms[index].target]
        if TABLE.terms[index].kind == "logit_distance":
            return prediction - target
        else:
            expected = softmax(target, inside, TABLE.terms[index].temperature)
            return softmax(prediction, inside, TABLE.terms[index].temperature) - expected


@triton.jit
def _slope_at_target(rows, inside, TABLE: tl.constexpr, index: tl.constexpr):
    """Gradient of a term at the logits of its target, without its factor."""
    prediction = rows[TABLE.terms[index].prediction]
    target = rows[TABLE.terms[index].target]
    if TABLE.terms[index].kind == "logit_distance":
        return target - prediction
    else:
        probability = softmax(target, inside, TABLE.terms[index].temperature)
        log_ratio = _log_ratio(prediction, target, inside, TABLE, index)
        return probability * (log_ratio - tl.sum(probability * log_ratio, axis=1)[:, None])


@triton.jit
def _log_ratio(prediction, target, inside, TABLE: tl.constexpr, index: tl.constexpr):
    log_target = log_softmax(target, inside, TABLE.terms[index].temperature)
    return log_target - log_softmax(prediction, inside, TABLE.terms[index].temperature)


@triton.jit
def _first_largest(logits, inside, column, COLUMNS: tl.constexpr):
    """Column of the first of the largest logits; as in PyTorch, NaN is larger than all."""
    is_nan = logits != logits
    any_nan = tl.max(is_nan.to(tl.int32), axis=1)[:, None] > 0
    largest = tl.max(tl.where(inside, logits, float("-inf")), axis=1)[:, None]
    chosen = inside & tl.where(any_nan, is_nan, logits == largest)
    return tl.min(tl.where(chosen, column, COLUMNS), axis=1)


@triton.jit
def _add_up(partial_sums, values, correct, TERMS: tl.constexpr, FORWARDS: tl.constexpr, SLOTS: tl.constexpr):
    """Add up the programs' sums, in an order that does not depend on which of them came last."""
    CHUNK: tl.constexpr = 64
    slot = tl.arange(0, SLOTS)
    total = tl.zeros((SLOTS,), tl.float64)
    first = 0
    while first < tl.num_programs(0):
        program = first + tl.arange(0, CHUNK)[:, None]
        written = (program < tl.num_programs(0)) & (slot < TERMS + FORWARDS)[None, :]
        # Past the first cache, which other processors' writes do not reach.
        sums = tl.load(partial_sums + program * SLOTS + slot[None, :], written, 0.0, cache_modifier=".cg")
        total += tl.sum(sums, axis=0)
        first += CHUNK
    tl.store(values + slot, total.to(tl.float32), mask=slot < TERMS)
    counts = tl.where(slot < TERMS, 0.0, total).to(tl.int64)
    tl.store(correct + slot - TERMS, counts, mask=(slot >= TERMS) & (slot < TERMS + FORWARDS))
