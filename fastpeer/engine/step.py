"""One training step: attack, forwards, loss, backward, update of the weights.

A step has static shapes, reads nothing back to the host and never branches on a value, so that it can be
captured whole in a CUDA graph.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from fastpeer.attack.pgd import evaluating, pgd
from fastpeer.attack.victim import Victim
from fastpeer.config import Config, OptimConfig
from fastpeer.data.counter import counter_key
from fastpeer.data.stream import Batch
from fastpeer.engine.capture import Captured, CudaRecorder
from fastpeer.engine.passes import Passes
from fastpeer.engine.plan import make_plan
from fastpeer.engine.precision import number_format
from fastpeer.engine.snapshot import keep_state
from fastpeer.kernels.counter_bits import signed, step_key
from fastpeer.methods.table import Attack, Method


class StepResult(NamedTuple):
    """What a step leaves to look at, on its device.

    Attributes:
        losses: the weighted value of each of the method's terms, (terms,).
        correct: how many samples each forward classified right, int64 (forwards,).
        nan_gradients: how many values of the attack's gradients were NaN and moved nothing, int64 (1,).
        skipped: 1 if float16 gradients overflowed and the weights were left as they were, int64 (1,).
    """

    losses: Tensor
    correct: Tensor
    nan_gradients: Tensor
    skipped: Tensor


class TrainingStep:
    """Does what a method's table says, once for each batch.

    Args:
        config: attack, optimizer, precision, engine and seed of the run.
        method: the table.
        networks: student and, where the method has one, peer; on the device, in the format's dtype. Their
            tensors are changed in place, never replaced.
        say: takes a line about parts of the engine that cannot be had.
    """

    def __init__(
        self,
        config: Config,
        method: Method,
        networks: Mapping[str, nn.Module],
        say: Callable[[str], None] = print,
    ) -> None:
        self.method = method
        self.networks = networks
        self.attack = config.attack
        self.format = number_format(config.precision)
        self.terms = method.loss_terms()
        self.device = next(networks["student"].parameters()).device
        self.plan = make_plan(config.engine, self.device, config.precision, say)
        self.kernels = self.plan.formulas()
        self.preparation = self.plan.preparation(self.format, self.device, say)
        self.victims = self._victims(method.attack)
        self.passes = Passes(method.forwards, networks, self.format, self.plan, say)
        self.optimizer = _sgd([networks[name] for name in method.trained], config.optim)
        self.scaler = torch.amp.GradScaler(self.device.type, enabled=self.format.autocast == torch.float16)
        self._noise = torch.tensor(signed(counter_key(config.seed, "attack")), device=self.device)
        self._number = torch.zeros((), dtype=torch.int64, device=self.device)
        self._program: Callable[[Tensor, Tensor], StepResult] = self.run
        if self.plan.graph:
            self._program = Captured(self.run, CudaRecorder(self.device), self.keep, say)

    def set_learning_rate(self, lr: float) -> None:
        """Set it for all trained networks, from the next step on."""
        for group in self.optimizer.param_groups:
            group["lr"].fill_(lr)

    def __call__(self, batch: Batch, number: int) -> StepResult:
        """Train on one batch; `number` counts all steps of the run and seeds the attack's noise."""
        self._number.fill_(number)
        return self._program(batch.images, batch.labels)

    def load_optimizer(self, state: dict[str, Any]) -> None:
        """Take up the optimizer's `state_dict` from a checkpoint, before the first step."""
        rate = self.optimizer.param_groups[0]["lr"]
        self.optimizer.load_state_dict(state)
        for group in self.optimizer.param_groups:
            # The saved rate is another tensor, and maybe on another device.
            group["lr"] = rate

    def release(self) -> None:
        """Give back what recorded steps and gradients hold; from here on, steps run uncaptured."""
        self._program = self.run
        self.optimizer.zero_grad(set_to_none=True)

    def keep(self) -> Callable[[], None]:
        """Copy all that a step changes; return what brings it back into the same memory."""
        # The scaler makes its tensors at the first use, which must not lie within a capture.
        self.scaler.scale(torch.ones((), device=self.device))
        return keep_state(self.networks.values(), self.optimizer, self.scaler)

    def run(self, images: Tensor, labels: Tensor) -> StepResult:
        """Run the step as a program of tensors: all that a CUDA graph captures."""
        inputs = {"clean": images}
        nan_gradients = torch.zeros(1, dtype=torch.int64, device=self.device)
        if self.method.attack is not None:
            inputs["adversarial"] = self.adversarial(images, self.method.attack, nan_gradients)
        logits = self.passes(inputs)
        scale = self.scaler.scale(torch.ones((), device=self.device))
        losses, gradients, correct = self.kernels.distill_loss(logits, labels, self.terms, scale)
        self._descend(logits, gradients)
        skipped = self.scaler.scale(torch.ones((), device=self.device)) < scale
        return StepResult(losses, correct, nan_gradients, skipped.long().view(1))

    def adversarial(self, images: Tensor, attack: Attack, nan_count: Tensor | None = None) -> Tensor:
        """Return the images that the step trains on, (B, 3, H, W) like `images`."""
        settings = self.attack
        student, tutor = self.victims[attack.student], self.victims[attack.away_from]
        with evaluating(*(self.networks[name] for name in self.victims)):
            for victim in self.victims.values():
                victim.refresh()
            target = torch.softmax(tutor.logits(images).to(images.dtype), dim=1)
            return pgd(
                student, images, target, self._start(images),
                epsilon=settings.epsilon, step_size=settings.step_size, steps=settings.steps,
                kernels=self.kernels, nan_count=nan_count,
            )  # fmt: skip

    def _start(self, images: Tensor) -> Tensor:
        if self.attack.start_std == 0:
            return images
        key = step_key(self._noise, self._number)
        start: Tensor = self.kernels.gaussian_start(images, self.attack.start_std, key)
        return start

    def _victims(self, attack: Attack | None) -> dict[str, Victim]:
        if attack is None:
            return {}
        names = dict.fromkeys((attack.student, attack.away_from))
        return {name: self.preparation.victim(self.networks[name], name) for name in names}

    def _descend(self, logits: list[Tensor], gradients: tuple[Tensor, ...]) -> None:
        self.optimizer.zero_grad(set_to_none=True)
        torch.autograd.backward(logits, gradients)
        self.scaler.step(self.optimizer)
        self.scaler.update()


def _sgd(networks: Sequence[nn.Module], optim: OptimConfig) -> torch.optim.SGD:
    """One optimizer computes what one for each network would, and where fp16 overflows, all skip together.

    The rate is a tensor, so that a captured step sees it change. Momentum begins at zero, which is what the
    first step would make of it, but is also there when fp16 skips that step.
    """
    groups = [{"params": list(network.parameters())} for network in networks]
    optimizer = torch.optim.SGD(
        groups, lr=optim.lr, momentum=optim.momentum, weight_decay=optim.weight_decay, fused=True
    )
    device = groups[0]["params"][0].device
    # The CPU's kernel computes in double whatever the weights are, CUDA's in single.
    rate = torch.tensor(
        optim.lr, dtype=torch.float64 if device.type == "cpu" else torch.float32, device=device
    )
    for group in optimizer.param_groups:
        group["lr"] = rate
        for parameter in group["params"] if optim.momentum else ():
            optimizer.state[parameter]["momentum_buffer"] = torch.zeros_like(parameter)
    return optimizer
