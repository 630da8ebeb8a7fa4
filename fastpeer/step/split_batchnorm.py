"""BatchNorm that counts: one pass may stand for several, and one batch may hold the images of several."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.modules.batchnorm import _BatchNorm


class SplitBatchNorm(_BatchNorm):
    """Trains on a batch made of equal parts, each with statistics of its own.

    Attributes:
        updates: numbers of the parts in the order in which the running statistics are to have seen them,
            each as often as it stands here.
        counts: whether the layer moves `num_batches_tracked` itself; else `count_batches` does.
    """

    transparent_in_eval = True
    updates: tuple[int, ...] = (0,)
    counts = True
    pending: int = 0

    def forward(self, input: Tensor) -> Tensor:
        """Normalise (B, C, ...)."""
        if not self.training:
            return super().forward(input)
        if self.momentum is None:
            raise ValueError("BatchNorm with cumulative statistics (momentum=None) cannot count passes")
        self._count(len(self.updates))
        count = 1 + max(self.updates)
        # The way back through chunk copies, also where there is nothing to split.
        parts = input.chunk(count) if count > 1 else (input,)
        in_order = list(self.updates) == sorted(self.updates)
        normalised = self._in_order(parts) if in_order else self._in_any_order(parts)
        return normalised[0] if len(normalised) == 1 else torch.cat(normalised)

    def _count(self, batches: int) -> None:
        if self.num_batches_tracked is None:
            return
        if self.counts:
            self.num_batches_tracked.add_(batches)
        else:
            self.pending += batches

    def _in_order(self, parts: tuple[Tensor, ...]) -> list[Tensor]:
        """Move the statistics while normalising: r ← (1 − m)·r + m·a, n times, is once with 1 − (1 − m)ⁿ."""
        normalised = []
        for number, part in enumerate(parts):
            # Not updates.count: PyTorch 2.8 cannot compile that.
            count = sum([one == number for one in self.updates])
            momentum = self._momentum if count == 1 else 1 - (1 - self._momentum) ** count
            normalised.append(self._normalised(part, self.running_mean, self.running_var, momentum))
        return normalised

    def _in_any_order(self, parts: tuple[Tensor, ...]) -> list[Tensor]:
        """Measure each part's statistics by themselves, then move the running ones."""
        measured = [[None if one is None else torch.zeros_like(one) for one in self._running] for _ in parts]
        pairs = zip(parts, measured, strict=True)
        normalised = [self._normalised(part, mean, variance, 1.0) for part, (mean, variance) in pairs]
        for number in self.updates:
            for running, own in zip(self._running, measured[number], strict=True):
                if running is not None and own is not None:
                    # As batch_norm itself does it: a pass before may have these saved, and not use them.
                    running.data.lerp_(own, self._momentum)
        return normalised

    def _normalised(
        self, part: Tensor, mean: Tensor | None, variance: Tensor | None, momentum: float
    ) -> Tensor:
        return F.batch_norm(part, mean, variance, self.weight, self.bias, True, momentum, self.eps)

    @property
    def _running(self) -> tuple[Tensor | None, Tensor | None]:
        return self.running_mean, self.running_var

    @property
    def _momentum(self) -> float:
        assert self.momentum is not None  # forward saw to that
        return self.momentum


class SplitBatchNorm1d(SplitBatchNorm, nn.BatchNorm1d):
    """For (B, C) and (B, C, L)."""


class SplitBatchNorm2d(SplitBatchNorm, nn.BatchNorm2d):
    """For (B, C, H, W)."""


class SplitBatchNorm3d(SplitBatchNorm, nn.BatchNorm3d):
    """For (B, C, D, H, W)."""


def split_batchnorms(network: nn.Module) -> bool:
    """Make all BatchNorm layers of a network counted ones, in place; their weights and names stay.

    Returns:
        Whether all can count: not those of a class derived from PyTorch's, whose forward is unknown, nor
        those with cumulative statistics; nothing is changed then.
    """
    counted = {
        nn.BatchNorm1d: SplitBatchNorm1d,
        nn.BatchNorm2d: SplitBatchNorm2d,
        nn.BatchNorm3d: SplitBatchNorm3d,
    }
    norms = [norm for norm in batchnorms(network) if not isinstance(norm, SplitBatchNorm)]
    if any(type(norm) not in counted or norm.momentum is None for norm in norms):
        return False
    for norm in norms:
        norm.__class__ = counted[type(norm)]
    return True


def set_updates(network: nn.Module, updates: tuple[int, ...], counts: bool = True) -> None:
    """Say of which parts the network's next batches are made, and in which order they are seen.

    Whoever has the layers not count calls `count_batches`.
    """
    for norm in batchnorms(network):
        if isinstance(norm, SplitBatchNorm):
            norm.updates = updates
            norm.counts = counts
            # Here, not at the first count: what appears on a layer later has torch.compile compile anew.
            norm.pending = 0


def count_batches(network: nn.Module) -> None:
    """Move the counters of all layers that did not do so themselves; one by one, each would be a launch."""
    norms = [one for one in batchnorms(network) if isinstance(one, SplitBatchNorm) and one.pending]
    counters = [one.num_batches_tracked for one in norms if one.num_batches_tracked is not None]
    if counters:
        torch._foreach_add_(counters, [one.pending for one in norms])
    for norm in norms:
        norm.pending = 0


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
