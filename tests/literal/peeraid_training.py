"""What is around the training step of PeerAiD (CVPR 2024), released code: the lr and the weight averaging."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Sequence

import torch
from torch import Tensor, nn

from tests.literal.peeraid import Settings, training_step

BATCH_NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d, nn.SyncBatchNorm)


def learning_rate(epoch: int, s: Settings) -> float:
    """PeerAiD (CVPR 2024), released code, the lr of both networks in a 0-based epoch.

    The test is "epoch >= milestone" and each milestone passed divides by 10: with the
    milestone 214 the 215th epoch already runs at the lower lr.
    """
    lr = s.lr
    for milestone in s.milestones:
        if epoch >= milestone:
            lr = lr / 10
    return lr


def train(
    student: nn.Module,
    peer: nn.Module,
    batches: Sequence[tuple[Tensor, Tensor]],
    s: Settings,
    epoch_of_step: Callable[[int], int] | Sequence[int] | None = None,
) -> list[dict[str, float]]:
    """PeerAiD (CVPR 2024), released code, training over a given list of (x, y) batches.

    One plain ``torch.optim.SGD`` for each network, with momentum and with weight decay on
    all parameters; the lr of both is set by ``learning_rate`` before each step.

    ``epoch_of_step`` gives the 0-based epoch of each step, as a function of the 0-based
    step or as a sequence; None puts all steps in epoch 0.  The start noise of the attack
    comes from the global generator, one draw for each step.
    """
    networks = {"student": student, "peer": peer}
    optimizers = {
        name: torch.optim.SGD(network.parameters(), lr=s.lr, momentum=s.momentum, weight_decay=s.weight_decay)
        for name, network in networks.items()
    }

    losses = []
    for step, (x, y) in enumerate(batches):
        if epoch_of_step is None:
            epoch = 0
        elif callable(epoch_of_step):
            epoch = epoch_of_step(step)
        else:
            epoch = epoch_of_step[step]

        lr = learning_rate(epoch, s)
        for optimizer in optimizers.values():
            for group in optimizer.param_groups:
                group["lr"] = lr

        losses.append(training_step(networks, optimizers, x, y, s, {}))
    return losses


class LiteralSWA:
    """PeerAiD (CVPR 2024), released code, stochastic weight averaging of the student.

    Only the student is averaged, from the epoch of the first milestone on (which is for
    the caller to see to), and the average never influences the training.

    ``model`` is the averaged network, None before the first ``collect``; ``count`` is the
    number of students in it.
    """

    def __init__(self) -> None:
        self.model: nn.Module | None = None
        self.count = 0

    def collect(self, student: nn.Module) -> None:
        """Take the student in, at the end of an epoch.

        PeerAiD (CVPR 2024), released code: equal-weight average of the parameters; the
        first one copies the student; buffers are not averaged (those of the copy stay
        until ``bn_update``).
        """
        if self.model is None:
            self.model = copy.deepcopy(student)
            self.model.zero_grad()
            self.count = 1
            return

        with torch.no_grad():
            for average, parameter in zip(self.model.parameters(), student.parameters(), strict=True):
                average.copy_((average * self.count + parameter) / (self.count + 1))
        self.count += 1

    def bn_update(self, batches: Iterable[tuple[Tensor, Tensor]]) -> None:
        """Recompute the running statistics of the average on clean (x, y) batches.

        PeerAiD (CVPR 2024), released code, each epoch: reset (running mean 0, running
        variance 1), then one train-mode pass with cumulative momentum b / (n + b), b the
        size of the batch and n the number of samples before it; the momenta are restored.
        The model is left in train mode.
        """
        if self.model is None:
            raise RuntimeError("bn_update before the first collect")

        batch_norms = [module for module in self.model.modules() if isinstance(module, BATCH_NORMS)]
        momenta = [module.momentum for module in batch_norms]

        for module in batch_norms:
            if module.running_mean is not None:
                module.running_mean.zero_()
            if module.running_var is not None:
                module.running_var.fill_(1.0)

        self.model.train()
        n = 0
        for x, _ in batches:
            b = x.shape[0]
            for module in batch_norms:
                module.momentum = b / (n + b)
            self.model(x)
            n += b

        for module, momentum in zip(batch_norms, momenta, strict=True):
            module.momentum = momentum
