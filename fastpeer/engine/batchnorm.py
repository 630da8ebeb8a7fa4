"""BatchNorm that counts: one pass may stand for several, and one batch may hold the images of several."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.modules.batchnorm import _BatchNorm


class CountedBatchNorm(_BatchNorm):
    """Trains on a batch made of equal parts, each with statistics of its own.

    Attributes:
        counts: for each part, in order, how many passes over it the running statistics are to have seen:
            r ← (1 − m)·r + m·a, repeated with the same a, equals one update with momentum
            1 − (1 − m)^count.
    """

    counts: tuple[int, ...] = (1,)

    def forward(self, input: Tensor) -> Tensor:
        """Normalise (B, C, ...)."""
        if not self.training:
            return super().forward(input)
        parts = [
            self._normalised(part, count)
            for part, count in zip(input.chunk(len(self.counts)), self.counts, strict=True)
        ]
        return parts[0] if len(parts) == 1 else torch.cat(parts)

    def _normalised(self, part: Tensor, count: int) -> Tensor:
        if self.momentum is None:
            raise ValueError("BatchNorm with cumulative statistics (momentum=None) cannot count passes")
        if self.num_batches_tracked is not None:
            self.num_batches_tracked.add_(count)
        momentum = self.momentum if count == 1 else 1 - (1 - self.momentum) ** count
        return F.batch_norm(
            part, self.running_mean, self.running_var, self.weight, self.bias, True, momentum, self.eps
        )


class CountedBatchNorm1d(CountedBatchNorm, nn.BatchNorm1d):
    """For (B, C) and (B, C, L)."""


class CountedBatchNorm2d(CountedBatchNorm, nn.BatchNorm2d):
    """For (B, C, H, W)."""


class CountedBatchNorm3d(CountedBatchNorm, nn.BatchNorm3d):
    """For (B, C, D, H, W)."""


def let_count(network: nn.Module) -> None:
    """Make all BatchNorm layers of a network counted ones, in place; their weights and names stay.

    Raises:
        ValueError: it has layers of a class derived from PyTorch's.
    """
    counted = {
        nn.BatchNorm1d: CountedBatchNorm1d,
        nn.BatchNorm2d: CountedBatchNorm2d,
        nn.BatchNorm3d: CountedBatchNorm3d,
    }
    for norm in batchnorms(network):
        if isinstance(norm, CountedBatchNorm):
            continue
        if type(norm) not in counted:
            raise ValueError(f"the network has a {type(norm).__name__}, whose statistics cannot be counted")
        norm.__class__ = counted[type(norm)]


def set_counts(network: nn.Module, counts: tuple[int, ...]) -> None:
    """Say of which parts the network's next batches are made."""
    for norm in batchnorms(network):
        assert isinstance(norm, CountedBatchNorm)  # let_count saw to that
        norm.counts = counts


def batchnorms(network: nn.Module) -> list[_BatchNorm]:
    """Return all BatchNorm layers of a network."""
    return [module for module in network.modules() if isinstance(module, _BatchNorm)]


@contextmanager
def momenta_restored(norms: list[_BatchNorm]) -> Iterator[None]:
    """Give layers back the momenta that they came with."""
    momenta = [norm.momentum for norm in norms]
    try:
        yield
    finally:
        for norm, momentum in zip(norms, momenta, strict=True):
            norm.momentum = momentum
