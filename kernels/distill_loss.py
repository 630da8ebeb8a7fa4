"""The loss of a whole method: a list of terms over the logits of several forwards."""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from fastpeer.kernels.terms import CrossEntropy, Divergence, KernelTerm, LogitDistance


class LossResult(NamedTuple):
    """What a batch costs, and what follows from it.

    Attributes:
        values: the weighted value of each term, (terms,), float64 for float64 logits and else float32.
        gradients: of the sum of the terms with respect to the logits, times the scale: M tensors (B, C) in
            the logits' dtypes, for `torch.autograd.backward(logits, gradients)`.
        correct: how many samples each forward classifies right, int64 (M,); of equal logits the first counts.
    """

    values: Tensor
    gradients: tuple[Tensor, ...]
    correct: Tensor


def distill_loss(
    logits: Sequence[Tensor],
    labels: Tensor,
    terms: Sequence[KernelTerm[int]],
    scale: Tensor | float = 1.0,
    sample_weights: Sequence[Tensor] = (),
) -> LossResult:
    """Evaluate every term, the gradient of their sum, and the accuracy of each forward.

    Args:
        logits: M tensors (B, C) of any floating dtype; half precisions are computed in float32.
        labels: int64 (B,).
        terms: what to add up, at least one.
        scale: factor of the gradients alone, applied before they are rounded to float16 (loss scaling);
            a tensor has one element.
        sample_weights: what `sample_weight` of a term counts, each (B,) of any floating dtype; constants.
    """
    leaves = [_at_least_float32(forward.detach()).requires_grad_() for forward in logits]
    with torch.enable_grad():
        values = torch.stack([_value(term, leaves, labels, sample_weights) for term in terms])
        gradients = torch.autograd.grad(values.sum(), leaves, allow_unused=True, materialize_grads=True)
    scaled = (gradient * scale for gradient in gradients)
    rounded = tuple(gradient.to(forward.dtype) for gradient, forward in zip(scaled, logits, strict=True))
    correct = torch.stack([(forward.detach().argmax(1) == labels).sum() for forward in logits])
    return LossResult(values.detach(), rounded, correct)


def _at_least_float32(logits: Tensor) -> Tensor:
    return logits if logits.dtype == torch.float64 else logits.float()


def _value(
    term: KernelTerm[int], logits: Sequence[Tensor], labels: Tensor, sample_weights: Sequence[Tensor]
) -> Tensor:
    prediction = logits[term.prediction]
    if isinstance(term, CrossEntropy):
        shares = torch.nn.functional.cross_entropy(prediction, labels, reduction="none")
    else:
        target = logits[term.target] if term.target_grad else logits[term.target].detach()
        shares = _distances(term, prediction, target)
    if term.sample_weight is not None:
        assert isinstance(term.sample_weight, int)  # A Confidence stands in a method's table alone.
        shares = shares * sample_weights[term.sample_weight].to(shares.dtype)
    by_class = not isinstance(term, CrossEntropy) and term.reduction == "mean"
    return term.weight * shares.sum() / (prediction.numel() if by_class else len(prediction))


def _distances(term: Divergence[int] | LogitDistance[int], prediction: Tensor, target: Tensor) -> Tensor:
    if isinstance(term, LogitDistance):
        return (prediction - target).square().sum(1)
    log_target = torch.log_softmax(target / term.temperature, dim=1)
    log_prediction = torch.log_softmax(prediction / term.temperature, dim=1)
    # Log-probabilities on both sides: where a target class underflows, the gradient stays finite.
    return term.temperature**2 * (log_target.exp() * (log_target - log_prediction)).sum(1)
