"""One training step: attacks, forwards, loss, backward, update of the weights.

A step has static shapes, reads nothing back to the host and never branches on a tensor's value, so that a
CUDA graph can capture the whole of it.
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
from fastpeer.step.graph import Captured, CudaRecorder, snapshot_state
from fastpeer.step.input_gradient import input_gradient_distance
from fastpeer.step.loss import LossTable, learning_forwards, twice_differentiated
from fastpeer.step.optimizer import describe_frozen, freeze, sgd
from fastpeer.step.options import options_of
from fastpeer.step.precision import attack_format, emulation_warning, number_format
from fastpeer.step.predictions import Predictions
from fastpeer.victims.factory import VictimFactory
from fastpeer.victims.seeded import seeded

log = logging.getLogger(__name__)


class StepResult(NamedTuple):
    """The figures of a step, on its device; a captured step overwrites them in the next call.

    Attributes:
        losses: the weighted value of each of the method's active terms, (terms,).
        correct: number of samples that each forward classified right, int64 (forwards,).
        nonfinite_gradients: number of values in the attacks' gradients that were NaN, which moved no pixel,
            or infinite, int64 (1,).
        skipped: 1 if float16 gradients overflowed and the weights were not updated, int64 (1,).
    """

    losses: Tensor
    correct: Tensor
    nonfinite_gradients: Tensor
    skipped: Tensor


class TrainingStep:
    """Trains a method's networks, one batch at a time.

    Args:
        config: attack, optimizer, precision, engine and seed of the run.
        method: the table.
        networks: the student and the method's other networks, peers and teachers, by name; on the device, in
            the number format's dtype, teachers in eval mode. Their tensors are changed in place, never
            replaced, since graphs and folded victims keep their addresses.
        size: side of the images in pixels, by which auto finds the nearest measurement; 0: unknown.
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
        scale = config.attack.gradient_scale
        self.victim_factory = self.options.victim_factory(self.format, self.device, self.compiler, scale)
        # Another one where attacks have a number format of their own: other networks keep the run's.
        self.attack_format = attack_format(config)
        self._attack_factory = self.victim_factory
        if self.attack_format != self.format:
            self._attack_factory = self.options.victim_factory(
                self.attack_format, self.device, self.compiler, scale
            )
        freeze({name: networks[name] for name in method.trained}, config.optim.freeze)
        self.optimizer = sgd([networks[name] for name in method.trained], config.optim)
        self._weights = [weight for group in self.optimizer.param_groups for weight in group["params"]]
        self.scaler = torch.amp.GradScaler(self.device.type, enabled=self.format.autocast == torch.float16)
        self._step_number = torch.zeros((), dtype=torch.int64, device=self.device)
        self.use(method)

    def use(self, method: Method) -> None:
        """Switch to another table of the same networks; weights, momentum and loss scale are kept."""
        self.method = method
        self.table = LossTable(method)
        self.balance = LossBalance(method, self.table.forwards, self.device)
        self.adversaries = self._adversaries()
        self._noise_keys = {name: self._noise_key(name) for name in self.adversaries}
        self.predictions = Predictions(
            self._networks_in_eval(), self.networks, method.trained, self._factory_of
        )
        self._moving_targets = Predictions(
            self._moving_apart(), self.networks, method.trained, lambda name: self._attack_factory
        )
        self._input_gradient_terms = twice_differentiated(method)
        differentiated = Differentiated(
            learning_forwards(method), {term.prediction for term in self._input_gradient_terms.values()}
        )
        self.forwards = self._forwards(method.forwards, differentiated)
        self.afterwards = self._forwards(method.afterwards, Differentiated(()))
        self._program: Callable[[Tensor, Tensor], StepResult] = self.run
        if self.options.graph:
            self._program = Captured(self.run, CudaRecorder(self.device), self.snapshot)

    @property
    def differentiates_twice(self) -> bool:
        """Whether the table has a term of input gradients, which takes a second derivative."""
        return bool(self._input_gradient_terms)

    def describe(self) -> list[str]:
        """Return lines for the log: the parts of the engine that are used, and what each network gets."""
        lines = self.options.describe(self.differentiates_twice, self._idle_parts())
        if self.options.fold:
            lines += [
                f"engine, the {name} in eval mode{self._own_format(by)}: {by.describe(self.networks[name])}"
                for name, by in self._victims()
            ]
            attacks = [adversary.attack for adversary in self.adversaries.values()]
            unfolded = dict.fromkeys(attack.victim for attack in attacks if attack.batchnorm == "train")
            lines += [
                f"engine: the {victim} is attacked in train mode, unfolded (--attack.batchnorm eval folds it)"
                for victim in unfolded
            ]
        lines += [
            f"engine, the {name} in training passes: uncompiled for engine.batchnorm, {fused.describe()}"
            for name, fused in self.forwards.fused.items()
        ]
        for name in sorted(self.method.trained, key=list(self.networks).index):
            lines += describe_frozen(name, self.networks[name])
        return [*lines, *self._emulated()] if self.device.type == "cpu" else lines

    def _emulated(self) -> list[str]:
        """Return a warning of each number format that the processor has no instructions for."""
        formats = {
            self.attack_format.autocast: "--attack.precision run",
            self.format.autocast: "--precision fp32",
        }
        return [line for dtype, flag in formats.items() if dtype for line in emulation_warning(dtype, flag)]

    def _idle_parts(self) -> dict[str, str]:
        """Return why parts that the options use have nothing to do, by part: networks may not allow them."""
        victims = self._victims()
        idle = {
            part: f"0 of {len(victims)} networks in eval mode"
            for part in ("fold", "chain")
            if not any(factory.uses(part, [self.networks[name]]) for name, factory in victims)
        }
        if not self.forwards.merges:
            unsplit = " and ".join(self.forwards.unsplit)
            idle["merge"] = (
                f"the BatchNorms of {unsplit} cannot be split" if unsplit else "no two passes to merge"
            )
        if self.compiler is not None and not self.compiler.names:
            idle["compile"] = "all of the step has kernels of its own"
        return idle

    def set_learning_rate(self, lr: float) -> None:
        """Set the learning rate of all networks from the next step on, and the pace of the loss weights."""
        for group in self.optimizer.param_groups:
            group["lr"].fill_(lr)
        first = self.config.optim.lr
        self.balance.set_progress(lr / first if first else 1.0)

    def train_on(self, batch: Batch, number: int) -> StepResult:
        """Train on one batch.

        `number` counts all steps of the run from 0. The attacks' noise is drawn from it and the run's seed,
        not from a generator's state, so a resumed run draws what the interrupted one would have.
        """
        self._step_number.fill_(number)
        return self._program(batch.images, batch.labels)

    def recorded(self, function: Callable[..., Tensor], what: str) -> Callable[..., Tensor]:
        """Return a function of tensors, captured if the step is: see `fastpeer.step.graph.captured`.

        `what` names the function in the log.
        """
        return self.options.recorded(function, self.device, what)

    def load_optimizer(self, state: dict[str, Any]) -> None:
        """Load the optimizer's `state_dict` from a checkpoint, before the first step is captured.

        Raises:
            ValueError, KeyError, TypeError, AttributeError: it is of other parameters.
        """
        own = [
            {name: value for name, value in group.items() if name != "params"}
            for group in self.optimizer.param_groups
        ]
        self.optimizer.load_state_dict(state)
        for group, settings in zip(self.optimizer.param_groups, own, strict=True):
            # Settings are the run's, not the checkpoint's; the rate is one tensor that all groups share.
            group.update(settings)
            for parameter in group["params"]:
                momentum = self.optimizer.state[parameter].get("momentum_buffer")
                if settings["momentum"] and (momentum is None or momentum.shape != parameter.shape):
                    raise ValueError("each parameter must have a momentum of its shape")

    def release(self) -> None:
        """Free the memory of captured steps and gradients; further steps run uncaptured."""
        self._program = self.run
        self.optimizer.zero_grad(set_to_none=True)

    def snapshot(self) -> Callable[[], None]:
        """Copy all that a step changes; return a function that restores it in the same memory."""
        # GradScaler allocates its tensors at the first use, which must not happen within a capture.
        self.scaler.scale(torch.ones((), device=self.device))
        trained = [self.networks[name] for name in self.method.trained]
        return snapshot_state(trained, self.balance.state.values(), self.optimizer, self.scaler)

    def run(self, images: Tensor, labels: Tensor) -> StepResult:
        """Train on images (B, 3, H, W) in [0, 1] and labels (B,): the program that a CUDA graph captures."""
        nonfinite_gradients = torch.zeros(1, dtype=torch.int64, device=self.device)
        scale = self.scaler.scale(torch.ones((), device=self.device))
        with self.predictions.of_one_step(), self._moving_targets.of_one_step():
            inputs = {"clean": images, **self._perturb(images, labels, nonfinite_gradients)}
            losses, correct = self._learn(inputs, labels, scale)
        with torch.no_grad():
            # Some released codes run the network again after the update, which moves BatchNorm's statistics.
            self.afterwards.run(inputs)
        # GradScaler lowers its scale in exactly those steps whose update it skips.
        skipped = self.scaler.scale(torch.ones((), device=self.device)) < scale
        return StepResult(losses, correct, nonfinite_gradients, skipped.long().view(1))

    def adversarial(
        self, images: Tensor, labels: Tensor, nonfinite_count: Tensor | None = None
    ) -> dict[str, Tensor]:
        """Return the images (B, 3, H, W) that each attack makes, by its name in the table; no weight changes.

        Args:
            images: clean images (B, 3, H, W) in [0, 1].
            labels: int64 (B,).
            nonfinite_count: int64 (1,), to which the number of gradient values that are not finite is added.
        """
        with self.predictions.of_one_step(), self._moving_targets.of_one_step():
            return self._perturb(images, labels, nonfinite_count)

    def _perturb(self, images: Tensor, labels: Tensor, nonfinite_count: Tensor | None) -> dict[str, Tensor]:
        keys = {name: step_key(key, self._step_number) for name, key in self._noise_keys.items()}
        return {
            name: adversary.perturb(images, labels, keys[name], self.predictions.logits, nonfinite_count)
            for name, adversary in self.adversaries.items()
        }

    def _learn(self, inputs: dict[str, Tensor], labels: Tensor, scale: Tensor) -> tuple[Tensor, Tensor]:
        """Run forward and backward and update the weights; return the terms' values and correct counts."""
        if self._input_gradient_terms:
            inputs["clean"] = inputs["clean"].detach().requires_grad_()
        logits = [*self.forwards.run(inputs), *self._teacher_logits(inputs)]
        moving = self.balance.update(logits)
        # The kernel returns the gradients at the logits along with the values, so that autograd starts there.
        # They are scaled in the kernel, before they are rounded to the logits' dtype.
        losses, gradients, correct = self.kernels.distill_loss(
            logits, labels, self.table.terms, scale, self.table.sample_weights(logits, labels, moving)
        )
        distances = self._input_gradient_distances(logits, inputs, labels)
        seeds = [scale.to(distance.dtype) for distance in distances]
        self._update_weights([*logits, *distances], [*gradients, *seeds])
        values = torch.cat([losses, *(value.detach().view(1).to(losses.dtype) for value in distances)])
        return values, correct

    def _teacher_logits(self, inputs: Mapping[str, Tensor]) -> list[Tensor]:
        """Return the logits (B, C) of frozen networks, in the order of the loss table."""
        forwards = self.table.forwards[len(self.forwards.order) :]
        return [self.predictions.logits(forward, inputs[forward.images].detach()) for forward in forwards]

    def _input_gradient_distances(
        self, logits: Sequence[Tensor], inputs: Mapping[str, Tensor], labels: Tensor
    ) -> list[Tensor]:
        """Return the weighted values (), differentiable, of the terms that need a second derivative."""
        return [
            term.weight
            * input_gradient_distance(
                logits[self.table.forwards.index(term.prediction)],
                inputs[term.prediction.images],
                labels,
                self.predictions.victims[term.teacher],
            )
            for term in self._input_gradient_terms.values()
        ]

    def _update_weights(self, outputs: Sequence[Tensor], gradients: Sequence[Tensor]) -> None:
        """Run backward from outputs with given gradients at them, and update the weights."""
        # None, not 0: backward then writes the gradients instead of adding to zeros, and while a graph is
        # captured they are allocated in its memory pool.
        self.optimizer.zero_grad(set_to_none=True)
        pairs = [pair for pair in zip(outputs, gradients, strict=True) if pair[0].requires_grad]
        roots, seeds = ([pair[which] for pair in pairs] for which in (0, 1))
        # With input gradients the images are leaves too, but what backward would accumulate there is unused.
        root = seeded(roots, seeds)
        torch.autograd.backward(root, inputs=self._weights if self._input_gradient_terms else None)
        self.scaler.step(self.optimizer)
        self.scaler.update()

    def _adversaries(self) -> dict[str, Adversary]:
        return {
            name: Adversary(
                overruled(attack, self.config.attack),
                name,
                self.networks,
                self.config.attack,
                self._attack_factory,
            )
            for name, attack in self.method.attacks.items()
        }

    def _networks_in_eval(self) -> list[Network]:
        """Return the names of networks that run in eval mode: victims, the attacks' targets and teachers."""
        attacks = [adversary.attack for adversary in self.adversaries.values()]
        victims = [attack.victim for attack in attacks if attack.batchnorm == "eval"]
        targets = [attack.away_from.network for attack in attacks if isinstance(attack.away_from, Forward)]
        return [*victims, *targets, *self.method.frozen]

    def _factory_of(self, name: Network) -> VictimFactory:
        """Return what makes the form of a network in eval mode: in the attack's format if it is attacked.

        As the target of its own attack too: at the start, that differs from it by little more than rounding.
        """
        attacked = {adversary.attack.victim for adversary in self.adversaries.values()}
        return self._attack_factory if name in attacked else self.victim_factory

    def _moving_apart(self) -> list[Network]:
        """Return the names of targets that attacks differentiate in another format than they else run in."""
        attacks = {name: adversary.attack for name, adversary in self.adversaries.items()}
        moving = [attack.away_from for name, attack in attacks.items() if attack.moves(name)]
        names = [target.network for target in moving if isinstance(target, Forward)]
        return [name for name in names if self._factory_of(name) is not self._attack_factory]

    def _victims(self) -> list[tuple[Network, VictimFactory]]:
        """Return the names of networks that run in eval mode, with what made the form in which they do."""
        usual = [(name, self._factory_of(name)) for name in self.predictions.victims]
        return [*usual, *((name, self._attack_factory) for name in self._moving_targets.victims)]

    def _own_format(self, factory: VictimFactory) -> str:
        return "" if factory is self.victim_factory else f", in {self.config.attack.precision}"

    def _noise_key(self, attack: str) -> Tensor:
        """Return the key, int64 (), that an attack's noise is drawn from together with the step's number."""
        purpose = "attack" if attack == "adversarial" else f"attack {attack}"
        return torch.tensor(signed(counter_key(self.config.seed, purpose)), device=self.device)

    def _forwards(self, forwards: Sequence[Forward], differentiated: Differentiated) -> Forwards:
        return Forwards(forwards, differentiated, self.networks, self.format, self.options, self.compiler)
