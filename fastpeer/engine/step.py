"""One training step: attack, forwards, loss, backward, update of the weights."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from fastpeer.attack.pgd import evaluating, gaussian_start, pgd
from fastpeer.config import AttackConfig, OptimConfig
from fastpeer.data.counter import generator
from fastpeer.data.stream import Batch
from fastpeer.engine.batchnorm import counted
from fastpeer.engine.precision import NumberFormat
from fastpeer.kernels.distill_loss import distill_loss
from fastpeer.methods.table import Attack, Method


@dataclass(frozen=True)
class StepResult:
    """What a step leaves to look at, on its device.

    Attributes:
        losses: the weighted value of each of the method's terms, (terms,).
        correct: how many samples each forward classified right, int64 (forwards,).
    """

    losses: Tensor
    correct: Tensor


class TrainingStep:
    """Does what a method's table says, once for each batch.

    Args:
        method: the table.
        networks: student and, where the method has one, peer; on the device, in the format's dtype.
        attack: radius, steps and start of the attack.
        optim: of SGD, the same for all trained networks.
        number_format: what to compute in.
        seed: of the attack's noise.
    """

    def __init__(
        self,
        method: Method,
        networks: Mapping[str, nn.Module],
        attack: AttackConfig,
        optim: OptimConfig,
        number_format: NumberFormat,
        seed: int,
    ) -> None:
        self.method = method
        self.networks = networks
        self.attack = attack
        self.format = number_format
        self.seed = seed
        self.terms = method.loss_terms()
        self.device = next(networks["student"].parameters()).device
        self.optimizer = _sgd([networks[name] for name in method.trained], optim)
        self.scaler = torch.amp.GradScaler(self.device.type, enabled=number_format.autocast == torch.float16)

    def set_learning_rate(self, lr: float) -> None:
        """Set it for all trained networks, from the next step on."""
        for group in self.optimizer.param_groups:
            group["lr"] = lr

    def __call__(self, batch: Batch, number: int) -> StepResult:
        """Train on one batch; `number` counts all steps of the run and seeds the attack's noise."""
        inputs = {"clean": batch.images}
        if self.method.attack is not None:
            inputs["adversarial"] = self.adversarial(batch.images, self.method.attack, number)
        logits = self._forwards(inputs)
        losses, gradients = distill_loss(
            logits, batch.labels, self.terms, self.scaler.scale(torch.ones((), device=self.device))
        )
        self._descend(logits, gradients)
        correct = [(one.detach().argmax(1) == batch.labels).sum() for one in logits]
        return StepResult(losses, torch.stack(correct))

    def adversarial(self, images: Tensor, attack: Attack, number: int) -> Tensor:
        """Return the images that the step trains on, (B, 3, H, W) like `images`."""
        student, tutor = self.networks[attack.student], self.networks[attack.away_from]
        start = images
        if self.attack.start_std > 0:
            noise = generator(self.device, self.seed, "attack", number)
            start = gaussian_start(images, self.attack.start_std, noise)
        with evaluating(student, tutor), self.format.autocasting(self.device):
            with torch.no_grad():
                target = torch.softmax(tutor(images).to(self.format.weights), dim=1)
            return pgd(
                student,
                images,
                target,
                start,
                epsilon=self.attack.epsilon,
                step_size=self.attack.step_size,
                steps=self.attack.steps,
            )

    def _forwards(self, inputs: Mapping[str, Tensor]) -> list[Tensor]:
        logits = []
        with self.format.autocasting(self.device):
            for forward in self.method.forwards:
                network = self.networks[forward.network]
                with counted(network, forward.counts):
                    logits.append(network(inputs[forward.images]))
        return logits

    def _descend(self, logits: list[Tensor], gradients: tuple[Tensor, ...]) -> None:
        self.optimizer.zero_grad(set_to_none=True)
        torch.autograd.backward(logits, gradients)
        self.scaler.step(self.optimizer)
        self.scaler.update()


def _sgd(networks: Sequence[nn.Module], optim: OptimConfig) -> torch.optim.SGD:
    """One optimizer computes what one for each network would, and where fp16 overflows, all skip together."""
    groups = [{"params": list(network.parameters())} for network in networks]
    return torch.optim.SGD(groups, lr=optim.lr, momentum=optim.momentum, weight_decay=optim.weight_decay)
