"""Split BatchNorm: one forward pass in place of several, with the statistics of each.

A method's table may run a network on several batches, or on one batch several times. In train mode, each run
normalises by its own batch's statistics and moves the running ones. These layers do the same in one pass over
the concatenated batches, with the same results.
"""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.modules.batchnorm import _BatchNorm

from fastpeer.kernels.batch_norm import BatchNorm, Running
from fastpeer.step.norm_function import normalised


class SplitBatchNorm(_BatchNorm):
    """Normalises each of a batch's equal parts by its own statistics in train mode.

    Attributes:
        updates: numbers of the parts, from 0, in the order in which they move the running statistics. A part
            that is listed twice moves them twice. There are 1 + max(updates) parts.
        counts: whether the forward increments `num_batches_tracked`; if not, `count_batches` does so later.
        pending: how much `count_batches` has to add.
        kernels: normalise in train mode, where they take the input; none: PyTorch's do.

    Raises:
        ValueError: in the forward, if the statistics are cumulative (momentum=None).
    """

    transparent_in_eval = True
    updates: tuple[int, ...] = (0,)
    counts = True
    pending: int = 0
    kernels: BatchNorm | None = None

    def forward(self, input: Tensor) -> Tensor:
        """Normalise (B, C, ...); in train mode, part by part."""
        if not self.training:
            return super().forward(input)
        if self.momentum is None:
            raise ValueError("the momentum of a split BatchNorm must be a number, got momentum=None")
        self._count(len(self.updates))
        if self._has_kernels_for(input):
            return self._by_kernels(input, None, relu=False)
        count = 1 + max(self.updates)
        # The backward of chunk copies the gradient, even for a single chunk.
        parts = input.chunk(count) if count > 1 else (input,)
        in_order = list(self.updates) == sorted(self.updates)
        results = self._in_order(parts) if in_order else self._in_any_order(parts)
        return results[0] if len(results) == 1 else torch.cat(results)

    def sum_relu(self, input: Tensor, residual: Tensor | None) -> Tensor:
        """Return relu(forward(input) [+ residual]), in one call where the kernels take the tensors."""
        alike = residual is None or (residual.shape == input.shape and residual.device == input.device)
        if self.training and alike and self._has_kernels_for(input):
            self._count(len(self.updates))
            return self._by_kernels(input, residual, relu=True)
        out = self.forward(input)
        return torch.relu(out if residual is None else out + residual)

    def _has_kernels_for(self, input: Tensor) -> bool:
        if self.kernels is None or self.weight is None or self.bias is None or self.momentum is None:
            return False
        return self.kernels.fits(input, 1 + max(self.updates))

    def _by_kernels(self, input: Tensor, residual: Tensor | None, relu: bool) -> Tensor:
        assert self.kernels is not None  # _has_kernels_for checked it
        running = None
        if self.running_mean is not None and self.running_var is not None:
            running = Running(self.running_mean, self.running_var, self._momentum, self.updates)
        return normalised(
            self.kernels,
            input,
            1 + max(self.updates),
            self.weight,
            self.bias,
            self.eps,
            residual,
            relu,
            running,
        )

    def _count(self, batches: int) -> None:
        if self.num_batches_tracked is None:
            return
        if self.counts:
            self.num_batches_tracked.add_(batches)
        else:
            self.pending += batches

    def _in_order(self, parts: tuple[Tensor, ...]) -> list[Tensor]:
        """Normalise the parts in their order, each moving the running statistics as it is normalised.

        The update r ← (1 − m)·r + m·a, n times with the same a, is one with the momentum 1 − (1 − m)ⁿ.
        """
        results = []
        for number, part in enumerate(parts):
            # Not updates.count(number): PyTorch 2.8 cannot compile that.
            count = sum([update == number for update in self.updates])
            momentum = self._momentum if count == 1 else 1 - (1 - self._momentum) ** count
            results.append(self._normalised(part, self.running_mean, self.running_var, momentum))
        return results

    def _in_any_order(self, parts: tuple[Tensor, ...]) -> list[Tensor]:
        """Normalise the parts, then move the running statistics in the order of `updates`.

        With a momentum of 1, batch_norm writes a part's own statistics into the buffers it is given.
        """
        measured = [[None if r is None else torch.zeros_like(r) for r in self._running] for _ in parts]
        pairs = zip(parts, measured, strict=True)
        results = [self._normalised(part, mean, variance, 1.0) for part, (mean, variance) in pairs]
        for number in self.updates:
            for running, own in zip(self._running, measured[number], strict=True):
                if running is not None and own is not None:
                    # .data, since autograd may have saved the running statistics of a pass before. Its
                    # backward does not use them in train mode, but would fail on their new version;
                    # batch_norm itself changes them without a new version too.
                    running.data.lerp_(own, self._momentum)
        return results

    def _normalised(
        self, part: Tensor, mean: Tensor | None, variance: Tensor | None, momentum: float
    ) -> Tensor:
        return F.batch_norm(part, mean, variance, self.weight, self.bias, True, momentum, self.eps)

    @property
    def _running(self) -> tuple[Tensor | None, Tensor | None]:
        return self.running_mean, self.running_var

    @property
    def _momentum(self) -> float:
        assert self.momentum is not None  # checked by forward
        return self.momentum


class SplitBatchNorm1d(SplitBatchNorm, nn.BatchNorm1d):
    """For (B, C) and (B, C, L)."""


class SplitBatchNorm2d(SplitBatchNorm, nn.BatchNorm2d):
    """For (B, C, H, W)."""


class SplitBatchNorm3d(SplitBatchNorm, nn.BatchNorm3d):
    """For (B, C, D, H, W)."""


def split_batchnorms(network: nn.Module) -> bool:
    """Turn all BatchNorm layers of a network into split ones, in place; their weights and names stay.

    Returns:
        False, with nothing changed, if a layer cannot be split: one of a class derived from PyTorch's, whose
        forward is unknown, or one with cumulative statistics (momentum=None).
    """
    split = {
        nn.BatchNorm1d: SplitBatchNorm1d,
        nn.BatchNorm2d: SplitBatchNorm2d,
        nn.BatchNorm3d: SplitBatchNorm3d,
    }
    norms = [norm for norm in batchnorms(network) if not isinstance(norm, SplitBatchNorm)]
    if any(type(norm) not in split or norm.momentum is None for norm in norms):
        return False
    for norm in norms:
        # The layer stays the same object: optimizers and hooks keep their references to it.
        norm.__class__ = split[type(norm)]
    # So that all attributes are there before anything is compiled, see below.
    set_updates(network, (0,))
    return True


def set_updates(
    network: nn.Module, updates: tuple[int, ...], counts: bool = True, kernels: BatchNorm | None = None
) -> None:
    """Set which parts the network's next batches consist of, and in which order they move the statistics.

    With `counts=False`, the caller calls `count_batches` after the pass. With kernels, those normalise.
    """
    for norm in batchnorms(network):
        if isinstance(norm, SplitBatchNorm):
            norm.updates = updates
            norm.counts = counts
            norm.kernels = kernels
            # Here, not in the forward: an attribute that appears on a layer later makes torch.compile
            # compile the network again.
            norm.pending = 0


def count_batches(network: nn.Module) -> None:
    """Increment `num_batches_tracked` of all layers that did not do so in their forward.

    In one operation for the whole network: layer by layer, each would be a kernel launch.
    """
    norms = [norm for norm in batchnorms(network) if isinstance(norm, SplitBatchNorm) and norm.pending]
    counters = [norm.num_batches_tracked for norm in norms if norm.num_batches_tracked is not None]
    if counters:
        torch._foreach_add_(counters, [norm.pending for norm in norms])
    for norm in norms:
        norm.pending = 0


def batchnorms(network: nn.Module) -> list[_BatchNorm]:
    """Return all BatchNorm layers of a network, split or not, in the order of its modules."""
    return [module for module in network.modules() if isinstance(module, _BatchNorm)]


@contextmanager
def momenta_restored(norms: list[_BatchNorm]) -> Iterator[None]:
    """Let the block change the layers' momenta; restore them at its end, also after an error."""
    momenta = [norm.momentum for norm in norms]
    try:
        yield
    finally:
        for norm, momentum in zip(norms, momenta, strict=True):
            norm.momentum = momentum
