"""The loss of a whole method: a list of cross-entropy and temperature-KL terms over several logits."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from fastpeer.config import Reduction


@dataclass(frozen=True)
class CrossEntropyTerm:
    """weight · H(y, softmax(logits[prediction])), averaged over the batch."""

    prediction: int
    weight: float


@dataclass(frozen=True)
class DivergenceTerm:
    """weight · τ² · KL(softmax(logits[target]/τ) ‖ softmax(logits[prediction]/τ)).

    The sum over the classes is averaged over the batch (`batchmean`), or divided by the number of
    classes on top of that (`mean`, PyTorch's default and so that of much released code).
    """

    prediction: int
    target: int
    weight: float
    temperature: float
    reduction: Reduction
    target_grad: bool


Term = CrossEntropyTerm | DivergenceTerm


def distill_loss(
    logits: Sequence[Tensor], labels: Tensor, terms: Sequence[Term], scale: Tensor | float = 1.0
) -> tuple[Tensor, tuple[Tensor, ...]]:
    """Evaluate every term, and the gradient of their sum.

    Args:
        logits: M tensors (B, C) of any floating dtype; half precisions are computed in float32.
        labels: int64 (B,).
        terms: what to add up.
        scale: factor of the gradients alone, applied before they are rounded to float16 (loss scaling).

    Returns:
        The weighted value of each term, (len(terms),), float64 for float64 logits and else float32,
        and M gradients (B, C) of the sum with respect to the logits, in the logits' dtypes:
        hand them to `torch.autograd.backward(logits, gradients)`.
    """
    leaves = [_at_least_float32(one.detach()).requires_grad_() for one in logits]
    with torch.enable_grad():
        values = torch.stack([_value(term, leaves, labels) for term in terms])
        gradients = torch.autograd.grad(values.sum(), leaves, allow_unused=True, materialize_grads=True)
    scaled = (grad * scale for grad in gradients)
    return values.detach(), tuple(grad.to(one.dtype) for grad, one in zip(scaled, logits, strict=True))


def _at_least_float32(logits: Tensor) -> Tensor:
    return logits if logits.dtype == torch.float64 else logits.float()


def _value(term: Term, logits: Sequence[Tensor], labels: Tensor) -> Tensor:
    prediction = logits[term.prediction]
    if isinstance(term, CrossEntropyTerm):
        return term.weight * torch.nn.functional.cross_entropy(prediction, labels)
    target = logits[term.target] if term.target_grad else logits[term.target].detach()
    log_target = torch.log_softmax(target / term.temperature, dim=1)
    log_prediction = torch.log_softmax(prediction / term.temperature, dim=1)
    # Log-probabilities on both sides: where a target class underflows, the gradient stays finite.
    divergence = (log_target.exp() * (log_target - log_prediction)).sum()
    count = prediction.numel() if term.reduction == "mean" else len(prediction)
    return term.weight * term.temperature**2 * divergence / count
