"""A method's terms as the loss kernel takes them: forwards by number, sample weights as tensors."""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from fastpeer.errors import UserError
from fastpeer.kernels.terms import KernelTerm
from fastpeer.methods.table import (
    Confidence,
    CrossEntropy,
    Divergence,
    Forward,
    InputGradientDistance,
    LogitDistance,
    Method,
    Term,
    forwards_of,
)

SampleWeight = Confidence[Forward] | str
"""What a sample's share is multiplied by: a confidence, or the moving weight of the term of that name."""


def active_terms(method: Method) -> dict[str, Term]:
    """Return the terms that weigh something, those of the kernel first.

    Raises:
        UserError: none does.
    """
    active = {name: term for name, term in method.terms.items() if term.weight != 0}
    if all(isinstance(term, InputGradientDistance) for term in active.values()):
        raise UserError("every weight in [loss] is 0 but for input gradients: there is nothing to learn")
    return dict(sorted(active.items(), key=lambda item: isinstance(item[1], InputGradientDistance)))


def learning_forwards(method: Method) -> set[Forward]:
    """Return the forwards that a gradient goes back through."""
    terms = active_terms(method).values()
    learning = {term.prediction for term in terms}
    learning |= {term.target for term in terms if not isinstance(term, _WITHOUT_TARGET) and term.target_grad}
    return {forward for forward in learning if forward.network in method.trained}


_WITHOUT_TARGET = (CrossEntropy, InputGradientDistance)


def twice_differentiated(method: Method) -> dict[str, InputGradientDistance]:
    """Return the terms that need a second derivative."""
    return {
        name: term for name, term in active_terms(method).items() if isinstance(term, InputGradientDistance)
    }


def frozen_forwards(method: Method) -> list[Forward]:
    """Return the forwards of frozen networks that terms read, each once."""
    forwards = [forward for term in active_terms(method).values() for forward in forwards_of(term)]
    return list(dict.fromkeys(forward for forward in forwards if forward.network not in method.trained))


class LossTable:
    """What the loss kernel is called with.

    Args:
        method: the table.

    Attributes:
        forwards: whose logits it takes, in this order: those of trained networks, then those of frozen ones.
        terms: as the kernel takes them.
    """

    def __init__(self, method: Method) -> None:
        self.forwards = [*dict.fromkeys(method.forwards), *frozen_forwards(method)]
        self._moving = method.balance.terms if method.balance else ()
        active = active_terms(method).items()
        terms = {name: term for name, term in active if not isinstance(term, InputGradientDistance)}
        weights = [self._weight_of(name, term) for name, term in terms.items()]
        self._weights = [weight for weight in dict.fromkeys(weights) if weight is not None]
        self.terms = [self._numbered(name, term) for name, term in terms.items()]

    def sample_weights(
        self, logits: Sequence[Tensor], labels: Tensor, moving: Mapping[str, Tensor]
    ) -> list[Tensor]:
        """Return what the terms' shares of a batch are multiplied by, (B,) each.

        Args:
            logits: of `forwards`.
            labels: int64 (B,).
            moving: weights of terms that move, of one element each.
        """
        return [self._sample_weight(weight, logits, labels, moving) for weight in self._weights]

    def _sample_weight(
        self, weight: SampleWeight, logits: Sequence[Tensor], labels: Tensor, moving: Mapping[str, Tensor]
    ) -> Tensor:
        if isinstance(weight, str):
            return moving[weight].expand(len(labels))
        return confidence(logits[self.forwards.index(weight.forward)].detach(), labels, weight)

    def _weight_of(self, name: str, term: KernelTerm[Forward]) -> SampleWeight | None:
        if name in self._moving:
            return name
        assert not isinstance(term.sample_weight, int)  # methods/check.py sees to that.
        return term.sample_weight

    def _numbered(self, name: str, term: KernelTerm[Forward]) -> KernelTerm[int]:
        """Return a term that names forwards and its sample weight by their places."""
        weight = self._weight_of(name, term)
        place = None if weight is None else self._weights.index(weight)
        prediction = self.forwards.index(term.prediction)
        if isinstance(term, CrossEntropy):
            return CrossEntropy(prediction, term.weight, place)
        ends = prediction, self.forwards.index(term.target)
        if isinstance(term, LogitDistance):
            return LogitDistance(*ends, term.weight, term.reduction, term.target_grad, place)
        return Divergence(*ends, term.weight, term.temperature, term.reduction, term.target_grad, place)


def confidence(logits: Tensor, labels: Tensor, weight: Confidence[Forward]) -> Tensor:
    """Return p(y)^power for each sample, or 1 minus that, (B,), at least float32."""
    wide = logits.to(torch.promote_types(logits.dtype, torch.float32))
    log_probability = torch.log_softmax(wide, dim=1).gather(1, labels[:, None])[:, 0]
    power = (weight.power * log_probability).exp()
    return 1 - power if weight.complement else power
