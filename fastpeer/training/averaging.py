"""Stochastic weight averaging (Izmailov et al. 2018), as PeerAiD's released code does it."""

import copy
from collections.abc import Callable, Iterable, Sequence

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from fastpeer.data.stream import Batch
from fastpeer.step.precision import NumberFormat
from fastpeer.step.split_batchnorm import batchnorms, momenta_restored


class AveragedStudent:
    """The equal-weight mean of the student's parameters at the ends of epochs.

    Args:
        student: copied for its shape; its values enter with the first `collect`.
        number_format: what it runs in.
        record: takes a function of tensors and its name, and returns one that does the same, such as a
            captured one.

    Attributes:
        network: the averaged network.
        count: how many models it is the mean of.
        measured: its BatchNorm statistics are those of the present mean.
    """

    def __init__(
        self,
        student: nn.Module,
        number_format: NumberFormat,
        record: Callable[[Callable[..., Tensor], str], Callable[..., Tensor]] = lambda function, what: (
            function
        ),
    ) -> None:
        self.network = copy.deepcopy(student)
        self.count = 0
        self.measured = False
        self._format = number_format
        # It changes the statistics, but to those of its batch alone: any number of runs leaves the same.
        self._run = record(self._forward, "the averaged student's BatchNorm pass")

    @torch.no_grad()
    def collect(self, student: nn.Module) -> None:
        """Take one more model into the mean; buffers are left to `reestimate`."""
        self.count += 1
        self.measured = False
        for mean, parameter in zip(self.network.parameters(), student.parameters(), strict=True):
            mean.lerp_(parameter, 1 / self.count)

    @torch.no_grad()
    def reestimate(self, batches: Iterable[Batch]) -> None:
        """Measure the BatchNorm statistics anew, in one train-mode pass over clean training images.

        Each batch enters with the weight that makes the result the mean over all samples so far.
        """
        norms = [norm for norm in batchnorms(self.network) if norm.running_mean is not None]
        if norms:
            self.measured = False
            self.network.train()
            with momenta_restored(norms):
                for norm in norms:
                    norm.reset_running_stats()
                    # After a batch, the running statistics are its own.
                    norm.momentum = 1.0
                self._measure(norms, batches)
        self.measured = True

    def _measure(self, norms: Sequence[_BatchNorm], batches: Iterable[Batch]) -> None:
        pairs = [(norm.running_mean, norm.running_var) for norm in norms]
        statistics = [one for pair in pairs for one in pair if one is not None]
        means = [torch.zeros_like(one) for one in statistics]
        seen = count = 0
        for batch in batches:
            seen, count = seen + len(batch.images), count + 1
            self._run(batch.images)
            torch._foreach_lerp_(means, statistics, len(batch.images) / seen)
        torch._foreach_copy_(statistics, means)
        for norm in norms:
            if norm.num_batches_tracked is not None:
                norm.num_batches_tracked.fill_(count)

    def _forward(self, images: Tensor) -> Tensor:
        with self._format.autocasting(images.device):
            logits: Tensor = self.network(images)
        return logits
