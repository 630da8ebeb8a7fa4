"""Handling of BatchNorm's running statistics."""

from collections.abc import Iterator
from contextlib import contextmanager

from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm


def batchnorms(network: nn.Module) -> list[_BatchNorm]:
    """Return all BatchNorm layers of a network."""
    return [module for module in network.modules() if isinstance(module, _BatchNorm)]


@contextmanager
def counted(network: nn.Module, times: int) -> Iterator[None]:
    """Let one train-mode pass move the running statistics as `times` passes over the same batch would.

    r ← (1 − m)·r + m·a, repeated with the same a, equals one update with momentum 1 − (1 − m)^times.
    """
    if times == 1:
        yield
        return
    norms = batchnorms(network)
    with momenta_restored(norms):
        for norm in norms:
            norm.momentum = 1 - (1 - _momentum(norm)) ** times
        yield
    for norm in norms:
        if norm.num_batches_tracked is not None:
            norm.num_batches_tracked.add_(times - 1)


@contextmanager
def momenta_restored(norms: list[_BatchNorm]) -> Iterator[None]:
    """Give layers back the momenta that they came with."""
    momenta = [norm.momentum for norm in norms]
    try:
        yield
    finally:
        for norm, momentum in zip(norms, momenta, strict=True):
            norm.momentum = momentum


def _momentum(norm: _BatchNorm) -> float:
    if norm.momentum is None:
        raise ValueError("BatchNorm with cumulative statistics (momentum=None) cannot be counted twice")
    return norm.momentum
