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
        student: copied for its architecture; its values enter with the first `collect`.
        number_format: precision of the BatchNorm pass.
        record: takes a function of tensors and its name for the log, and returns an equivalent function, for
            instance one that replays a CUDA graph.

    Attributes:
        network: the averaged network.
        count: number of models averaged so far.
        measured: whether the BatchNorm statistics were estimated for the current mean.
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
        # The warm-up runs of a capture need no undoing: at momentum 1 each run overwrites the running
        # statistics with those of its batch.
        self._run = record(self._forward, "the averaged student's BatchNorm pass")

    @torch.no_grad()
    def collect(self, student: nn.Module) -> None:
        """Add a model's parameters to the mean; its buffers are not averaged, see `reestimate`."""
        self.count += 1
        self.measured = False
        for mean, parameter in zip(self.network.parameters(), student.parameters(), strict=True):
            # Mean of n from the mean of n - 1; at n = 1 the weight is 1, which replaces the initial values.
            mean.lerp_(parameter, 1 / self.count)

    @torch.no_grad()
    def reestimate(self, batches: Iterable[Batch]) -> None:
        """Estimate the BatchNorm statistics again, in one train-mode pass over clean training images.

        Averaged parameters produce other activations than any of the averaged models, whose statistics
        therefore do not fit. Each batch is weighted by its size; as in the released code, the variance is the
        mean of the batches' variances, not the variance over all images.

        Args:
            batches: images (B, 3, H, W) on the network's device; their labels are not used.
        """
        norms = [norm for norm in batchnorms(self.network) if norm.running_mean is not None]
        if norms:
            self.measured = False
            self.network.train()
            with momenta_restored(norms):
                for norm in norms:
                    norm.reset_running_stats()
                    # After each batch, the running statistics are that batch's alone; `_measure` averages.
                    norm.momentum = 1.0
                self._measure(norms, batches)
        self.measured = True

    def _measure(self, norms: Sequence[_BatchNorm], batches: Iterable[Batch]) -> None:
        pairs = [(norm.running_mean, norm.running_var) for norm in norms]
        statistics = [tensor for pair in pairs for tensor in pair if tensor is not None]
        means = [torch.zeros_like(tensor) for tensor in statistics]
        num_images = num_batches = 0
        for batch in batches:
            num_images, num_batches = num_images + len(batch.images), num_batches + 1
            self._run(batch.images)
            # A foreach call for all layers, instead of two launches for each.
            torch._foreach_lerp_(means, statistics, len(batch.images) / num_images)
        torch._foreach_copy_(statistics, means)
        for norm in norms:
            if norm.num_batches_tracked is not None:
                norm.num_batches_tracked.fill_(num_batches)

    def _forward(self, images: Tensor) -> Tensor:
        with self._format.autocasting(images.device):
            logits: Tensor = self.network(images)
        return logits
