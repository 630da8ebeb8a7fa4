"""The weights of two divergences that follow their progress (MTARD), on the device."""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from fastpeer.methods.table import Balance, Divergence, Forward, Method


class LossBalance:
    """Moves the weights of two terms in every step, without reading anything back.

    Args:
        method: the table; without a balance, there are no weights.
        forwards: whose logits `update` gets, in their order.
        device: of the logits.

    Attributes:
        state: tensors that the next step's weights depend on, to be kept with a checkpoint: the weight of the
            second term (), and both terms' values at the first step (2,), NaN before it.
    """

    def __init__(self, method: Method, forwards: Sequence[Forward], device: torch.device) -> None:
        self._balance = method.balance
        self._terms = [] if method.balance is None else _divergences(method, method.balance)
        self._ends = [(forwards.index(term.prediction), forwards.index(term.target)) for term in self._terms]
        # In double: three numbers that add up over a whole training.
        numbers = {"weight": torch.tensor(0.5), "first": torch.full((2,), torch.nan)}
        self.state: dict[str, Tensor] = {}
        self._rate = torch.tensor(0.0, dtype=torch.float64, device=device)
        if method.balance is not None:
            self.state = {name: number.to(device, torch.float64) for name, number in numbers.items()}
            self.set_progress(1.0)

    def set_progress(self, factor: float) -> None:
        """Let the weights follow slower: at `factor` times their first rate."""
        if self._balance is not None:
            self._rate.fill_(self._balance.rate * factor)

    @torch.no_grad()
    def update(self, logits: Sequence[Tensor]) -> Mapping[str, Tensor]:
        """Take in a step's logits; return the weights of the two terms for that same step, () each."""
        if self._balance is None:
            return {}
        weight, first = self.state["weight"], self.state["first"]
        values = torch.stack([self._value(logits[a], logits[b]) for a, b in self._ends])
        first.copy_(torch.where(first.isnan(), values, first))
        progress = values / first
        weight -= self._rate * (weight - progress[1] / progress.sum())
        return dict(zip(self._balance.terms, (1 - weight, weight.clone()), strict=True))

    def load_state(self, state: Mapping[str, Tensor]) -> None:
        """Load the `state` of a checkpoint; one without a balance changes nothing."""
        for name, former in state.items():
            self.state[name].copy_(former)

    def _value(self, prediction: Tensor, target: Tensor) -> Tensor:
        """Mean over batch and classes; a factor would cancel."""
        assert self._balance is not None
        log_prediction = torch.log_softmax(prediction.double(), dim=1)
        probability = torch.softmax(target.double(), dim=1)
        return (probability * ((probability + self._balance.offset).log() - log_prediction)).mean()


def _divergences(method: Method, balance: Balance) -> list[Divergence[Forward]]:
    return [term for name in balance.terms if isinstance(term := method.terms[name], Divergence)]
