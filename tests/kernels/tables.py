"""Loss tables and logits that the tests of the loss share."""

from typing import NamedTuple

import pytest
import torch
from torch import Tensor

from fastpeer.kernels.terms import CrossEntropy, Divergence, KernelTerm, LogitDistance

Terms = tuple[KernelTerm[int], ...]


class Setting(NamedTuple):
    """A published setting of PeerAiD."""

    classes: int
    terms: Terms


def peeraid(gamma2: float, lambda1: float, lambda2: float, lambda3: float, tau: float) -> Terms:
    """PeerAiD on the forwards peer, student (both adversarial) and student (clean), as released."""
    return (
        CrossEntropy(0, 1.0),
        Divergence(0, 1, gamma2, 1.0, "mean", True),
        CrossEntropy(1, lambda1),
        Divergence(1, 0, lambda2, tau, "mean", False),
        Divergence(1, 2, lambda3, tau, "mean", True),
    )


LOGITS = [
    (2, 5), pytest.param(3, 4096, marks=pytest.mark.soak), (10, 1), (10, 128), (100, 5), (200, 5), (257, 1),
    (1000, 5),
]  # fmt: skip
"""Classes and batches of the attacks' gradients."""
PEERAID = {
    "cifar10": Setting(10, peeraid(0.1, 0.0, 1.0, 1.0, 5.0)),
    "cifar100": Setting(100, peeraid(1.0, 0.0, 1.0, 1.0, 5.0)),
    "tiny": Setting(200, peeraid(100.0, 0.035, 35.0, 20.0, 1.0)),
}

EVERYTHING: Terms = (
    CrossEntropy(0, 0.5),
    CrossEntropy(2, 0.25, sample_weight=1),
    Divergence(0, 1, 2.0, 4.0, "batchmean", True),
    Divergence(1, 2, 3.0, 1.0, "mean", True, sample_weight=0),
    Divergence(2, 2, 3.0, 1.0, "batchmean", False),
    LogitDistance(0, 2, 0.5, "mean", True),
    LogitDistance(2, 1, 0.1, "batchmean", False, sample_weight=1),
)
"""Every kind of term on three forwards, with two sample weights."""

SIX_FORWARDS: Terms = (
    CrossEntropy(0, 1.0),
    Divergence(0, 1, 6.0, 1.0, "batchmean", True, sample_weight=0),
    CrossEntropy(3, 1.0, sample_weight=1),
    Divergence(4, 5, 3.0, 4.0, "mean", True, sample_weight=1),
    LogitDistance(1, 2, 1.0, "mean", False),
    LogitDistance(4, 3, 1.0, "batchmean", True, sample_weight=0),
    Divergence(2, 5, 0.5, 2.0, "batchmean", False, sample_weight=0),
)
"""Every kind of term, as many as CAT has: seven on six forwards, with two sample weights."""


class Batch(NamedTuple):
    """What a loss is evaluated on."""

    logits: list[Tensor]
    labels: Tensor
    sample_weights: list[Tensor]

    def to(self, where: torch.device | torch.dtype) -> "Batch":
        """Move to a device, or convert all but the labels to a dtype."""
        labels = self.labels.to(where) if isinstance(where, torch.device) else self.labels
        return Batch(
            [one.to(where) for one in self.logits], labels, [one.to(where) for one in self.sample_weights]
        )


def random_batch(seed: int, batch: int, classes: int, spread: float = 3.0, forwards: int = 3) -> Batch:
    """Normal float64 logits of standard deviation `spread`, and two sample weights in [0, 1)."""
    random = torch.Generator().manual_seed(seed)
    options = {"generator": random, "dtype": torch.float64}
    return Batch(
        [spread * torch.randn(batch, classes, **options) for _ in range(forwards)],
        torch.randint(0, classes, (batch,), generator=random),
        [torch.rand(batch, **options) for _ in range(2)],
    )
