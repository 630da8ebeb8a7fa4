"""Stochastic weight averaging (Izmailov et al. 2018), as PeerAiD's released code does it."""

import copy
from collections.abc import Iterable

import torch
from torch import nn

from fastpeer.data.stream import Batch
from fastpeer.engine.batchnorm import batchnorms, momenta_restored
from fastpeer.engine.precision import NumberFormat


class AveragedStudent:
    """The equal-weight mean of the student's parameters at the ends of epochs.

    Args:
        student: copied for its shape; its values enter with the first `collect`.

    Attributes:
        network: the averaged network.
        count: how many models it is the mean of.
        measured: its BatchNorm statistics are those of the present mean.
    """

    def __init__(self, student: nn.Module) -> None:
        self.network = copy.deepcopy(student)
        self.count = 0
        self.measured = False

    @torch.no_grad()
    def collect(self, student: nn.Module) -> None:
        """Take one more model into the mean; buffers are left to `reestimate`."""
        self.count += 1
        self.measured = False
        for mean, parameter in zip(self.network.parameters(), student.parameters(), strict=True):
            mean.lerp_(parameter, 1 / self.count)

    @torch.no_grad()
    def reestimate(self, batches: Iterable[Batch], number_format: NumberFormat) -> None:
        """Measure the BatchNorm statistics anew, in one train-mode pass over clean training images.

        Each batch enters with the momentum that makes the result the mean over all samples so far.
        """
        norms = batchnorms(self.network)
        seen = 0
        self.measured = False
        self.network.train()
        with momenta_restored(norms):
            for norm in norms:
                # Its counter of batches too, so that a pass that is cut short and repeated leaves no trace.
                norm.reset_running_stats()
            for batch in batches:
                seen += len(batch.images)
                for norm in norms:
                    norm.momentum = len(batch.images) / seen
                with number_format.autocasting(batch.images.device):
                    self.network(batch.images)
        self.measured = True
