"""One training step: attacks, forwards, loss, backward, update of the weights.

A step has static shapes, reads nothing back to the host and never branches on a value, so that it can be
captured whole in a CUDA graph.
"""

import logging
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from fastpeer.config import Config
from fastpeer.data.counter import counter_key
from fastpeer.data.stream import Batch
from fastpeer.kernels.counter_bits import signed, step_key
from fastpeer.methods.table import Forward, Method, Network
from fastpeer.step.attacks import Adversary, overruled
from fastpeer.step.balance import LossBalance
from fastpeer.step.compile import Compiler
from fastpeer.step.forwards import Differentiated, Forwards
from fastpeer.step.graph import Captured, CudaRecorder, keep_state
from fastpeer.step.input_gradient import input_gradient_distance
from fastpeer.step.loss import LossTable, learning_forwards, twice_differentiated
from fastpeer.step.optimizer import sgd
from fastpeer.step.options import options_of
from fastpeer.step.precision import emulated, number_format
from fastpeer.step.predictions import Predictions

log = logging.getLogger(__name__)


class StepResult(NamedTuple):
    """What a step leaves to look at, on its device.

    Attributes:
        losses: the weighted value of each of the method's active terms, (terms,).
        correct: how many samples each forward classified right, int64 (forwards,).
        nan_gradients: how many values of the attacks' gradients were NaN and moved nothing, int64 (1,).
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
        networks: student and whatever else the method speaks of, peers and teachers; on the device, in the
            format's dtype, teachers in eval mode. Their tensors are changed in place, never replaced.
        size: side of the images, by which auto finds what was measured; 0: not known.
    """

    def __init__(
        self,
        config: Config,
        method: Method,
        networks: Mapping[str, nn.Module],
        size: int = 0,
    ) -> None:
        self.config = config
        self.networks = networks
        self.format = number_format(config.precision)
        self.device = next(networks["student"].parameters()).device
        self.options = options_of(config, self.device, size)
        for line in self.options.refused:
            log.warning(line)
        self.kernels = self.options.formulas()
        self.compiler = Compiler(config.train.batch_size) if self.options.compile else None
        self.victim_factory = self.options.victim_factory(self.format, self.device, self.compiler)
        self.optimizer = sgd([networks[name] for name in method.trained], config.optim)
        # Where the images are differentiated too, the way back is to stop at these.
        self._weights = [one for group in self.optimizer.param_groups for one in group["params"]]
        self.scaler = torch.amp.GradScaler(self.device.type, enabled=self.format.autocast == torch.float16)
        self._number = torch.zeros((), dtype=torch.int64, device=self.device)
        self.use(method)

    def use(self, method: Method) -> None:
        """Go on by another table, of the same networks: weights, momentum and loss scale stay."""
        self.method = method
        self.table = LossTable(method)
        self.balance = LossBalance(method, self.table.forwards, self.device)
        self.adversaries = self._adversaries()
        self._noise = {name: self._key(name) for name in self.adversaries}
        self.predictions = Predictions(self._asked(), self.networks, method.trained, self.victim_factory)
        self._twice = twice_differentiated(method)
        differentiated = Differentiated(
            learning_forwards(method), {term.prediction for term in self._twice.values()}
        )
        self.forwards = self._forwards(method.forwards, differentiated)
        self.afterwards = self._forwards(method.afterwards, Differentiated(()))
        self._program: Callable[[Tensor, Tensor], StepResult] = self.run
        if self.options.graph:
            self._program = Captured(self.run, CudaRecorder(self.device), self.keep)

    @property
    def differentiates_twice(self) -> bool:
        """Whether the table has a term that is a gradient itself."""
        return bool(self._twice)

    def describe(self) -> list[str]:
        """Say which parts of the engine are used, and what the method keeps them from."""
        attacks = [adversary.attack for adversary in self.adversaries.values()]
        live = dict.fromkeys(attack.victim for attack in attacks if attack.batchnorm == "train")
        lines = [
            f"engine: the {victim} is attacked in train mode, unfolded (--attack.batchnorm eval folds it)"
            for victim in live
        ]
        described = [*self.options.describe(self.differentiates_twice), *(lines if self.options.fold else [])]
        if self.device.type == "cpu" and self.format.autocast is not None:
            described += emulated(self.format.autocast)
        return described

    def set_learning_rate(self, lr: float) -> None:
        """Set it for all trained networks, from the next step on; what follows it goes along."""
        for group in self.optimizer.param_groups:
            group["lr"].fill_(lr)
        first = self.config.optim.lr
        self.balance.set_progress(lr / first if first else 1.0)

    def __call__(self, batch: Batch, number: int) -> StepResult:
        """Train on one batch; `number` counts all steps of the run and seeds the attacks' noise."""
        self._number.fill_(number)
        return self._program(batch.images, batch.labels)

    def recorded(self, function: Callable[..., Tensor], what: str) -> Callable[..., Tensor]:
        """Capture, where the step is captured too, a function of tensors that changes nothing else."""
        return self.options.recorded(function, self.device, what)

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
        trained = [self.networks[name] for name in self.method.trained]
        return keep_state(trained, self.balance.state.values(), self.optimizer, self.scaler)

    def run(self, images: Tensor, labels: Tensor) -> StepResult:
        """Run the step as a program of tensors: all that a CUDA graph captures."""
        nan_gradients = torch.zeros(1, dtype=torch.int64, device=self.device)
        scale = self.scaler.scale(torch.ones((), device=self.device))
        with self.predictions.of_one_step():
            inputs = {"clean": images, **self._perturb(images, labels, nan_gradients)}
            losses, correct = self._learn(inputs, labels, scale)
        with torch.no_grad():
            # For BatchNorm's statistics alone.
            self.afterwards.run(inputs)
        skipped = self.scaler.scale(torch.ones((), device=self.device)) < scale
        return StepResult(losses, correct, nan_gradients, skipped.long().view(1))

    def adversarial(
        self, images: Tensor, labels: Tensor, nan_count: Tensor | None = None
    ) -> dict[str, Tensor]:
        """Return the images (B, 3, H, W) that each attack makes, by its name in the table; nothing learns."""
        with self.predictions.of_one_step():
            return self._perturb(images, labels, nan_count)

    def _perturb(self, images: Tensor, labels: Tensor, nan_count: Tensor | None) -> dict[str, Tensor]:
        return {
            name: adversary.perturb(
                images, labels, step_key(self._noise[name], self._number), self.predictions.logits, nan_count
            )
            for name, adversary in self.adversaries.items()
        }

    def _learn(self, inputs: dict[str, Tensor], labels: Tensor, scale: Tensor) -> tuple[Tensor, Tensor]:
        """Go forward, back, and one step down; return each term's value and each forward's correct ones."""
        if self._twice:
            inputs["clean"] = inputs["clean"].detach().requires_grad_()
        logits = [*self.forwards.run(inputs), *self._frozen(inputs)]
        moving = self.balance.update(logits)
        # The gradients come with the values: what autograd has left to do begins at the logits.
        losses, gradients, correct = self.kernels.distill_loss(
            logits, labels, self.table.terms, scale, self.table.sample_weights(logits, labels, moving)
        )
        distances = self._distances(logits, inputs, labels)
        self._descend([*logits, *distances], [*gradients, *(scale.to(one.dtype) for one in distances)])
        values = torch.cat([losses, *(one.detach().view(1).to(losses.dtype) for one in distances)])
        return values, correct

    def _frozen(self, inputs: Mapping[str, Tensor]) -> list[Tensor]:
        """Return what the teachers say."""
        forwards = self.table.forwards[len(self.forwards.order) :]
        return [self.predictions.logits(forward, inputs[forward.images].detach()) for forward in forwards]

    def _distances(
        self, logits: Sequence[Tensor], inputs: Mapping[str, Tensor], labels: Tensor
    ) -> list[Tensor]:
        """Return the weighted values of the terms that need a second derivative."""
        return [
            term.weight
            * input_gradient_distance(
                logits[self.table.forwards.index(term.prediction)],
                inputs[term.prediction.images],
                labels,
                self.predictions.victims[term.teacher],
            )
            for term in self._twice.values()
        ]

    def _descend(self, outputs: Sequence[Tensor], gradients: Sequence[Tensor]) -> None:
        self.optimizer.zero_grad(set_to_none=True)
        pairs = [pair for pair in zip(outputs, gradients, strict=True) if pair[0].requires_grad]
        roots, seeds = ([pair[which] for pair in pairs] for which in (0, 1))
        torch.autograd.backward(roots, seeds, inputs=self._weights if self._twice else None)
        self.scaler.step(self.optimizer)
        self.scaler.update()

    def _adversaries(self) -> dict[str, Adversary]:
        return {
            name: Adversary(
                overruled(attack, self.config.attack),
                name,
                self.networks,
                self.config.attack,
                self.victim_factory,
            )
            for name, attack in self.method.attacks.items()
        }

    def _asked(self) -> list[Network]:
        """Name the networks that are run in eval mode."""
        attacks = [adversary.attack for adversary in self.adversaries.values()]
        asked = [one.victim for one in attacks if one.batchnorm == "eval"]
        asked += [one.away_from.network for one in attacks if isinstance(one.away_from, Forward)]
        return [*asked, *self.method.frozen]

    def _key(self, attack: str) -> Tensor:
        """Return what an attack's noise is drawn from."""
        purpose = "attack" if attack == "adversarial" else f"attack {attack}"
        return torch.tensor(signed(counter_key(self.config.seed, purpose)), device=self.device)

    def _forwards(self, forwards: Sequence[Forward], differentiated: Differentiated) -> Forwards:
        return Forwards(forwards, differentiated, self.networks, self.format, self.options, self.compiler)
