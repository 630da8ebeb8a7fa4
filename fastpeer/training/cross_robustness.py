"""Each network against each network's adversarial examples over the epochs (Figures 1 and 3 of the paper)."""

import logging
import time
from collections.abc import Callable, Mapping
from typing import Any

from torch import Tensor, nn

from fastpeer.config import Config
from fastpeer.data.stream import EvaluationStream
from fastpeer.evaluation.accuracy import Evaluator
from fastpeer.evaluation.attacks import LabelAttack, label_pgd, no_attack
from fastpeer.printing import at_the_end_of_every, format_seconds
from fastpeer.step.step import TrainingStep
from fastpeer.training.selection import Accuracies, percent
from fastpeer.training.setup import TrainingSetup
from fastpeer.training.signals import StopRequest

log = logging.getLogger(__name__)


class CrossRobustness:
    """Measures student, peer and teachers, in eval mode, on clean images and on each other's examples.

    The examples are made by PGD on the cross-entropy with the labels; its norm, epsilon and step size are the
    training attack's. No number is drawn from PyTorch's generators and no statistic moves: the training is
    the same, to the last bit.

    Args:
        config: the run's settings.
        setup: its networks, teachers and images.
        step: prepares networks for the attack.
        stop: checked before each batch.
    """

    def __init__(self, config: Config, setup: TrainingSetup, step: TrainingStep, stop: StopRequest) -> None:
        self.config = config
        self._networks = {name: setup.all_networks[name] for name in sorted(setup.all_networks, key=_place)}
        self._step = step
        self._stop = stop
        training, images = setup.training, config.record.images
        sampled = EvaluationStream(training.source, training.indices, training.dtype).sample(images)
        self.streams = {"train": sampled, config.selection.split: setup.selection.sample(images)}
        self._evaluators: dict[str, Evaluator] = {}

    def is_due(self, epoch: int, epochs: int) -> bool:
        """Whether an epoch, counted from 0, of so many ends with a record."""
        record = self.config.record
        return record.cross_robustness and (epoch + 1 == epochs or (epoch + 1) % record.every == 0)

    def describe(self) -> str:
        """Describe in one line what is recorded, and on which images."""
        names = " and ".join(name.replace("_", " ") for name in self._networks)
        images = " and ".join(f"{len(stream.indices)} {name}" for name, stream in self.streams.items())
        record = self.config.record
        return (
            f"{at_the_end_of_every(record.every)}, recorded: accuracies of {names} on the examples"
            f" of each (PGD-{record.steps}), on {images} images"
        )

    def measure(self) -> dict[str, dict[str, Accuracies]]:
        """Return accuracies in %, by split, then network, then clean or on_NETWORK, whose examples it saw."""
        found: dict[str, dict[str, Accuracies]] = {}
        for split, stream in self.streams.items():
            found[split] = {name: {} for name in self._networks}
            for images, evaluator in self._prepared().items():
                for name, correct in evaluator.correct(self._stop.checked(stream)).items():
                    found[split][name][images] = percent(correct)
        return found

    def record(self, epoch_seconds: float) -> dict[str, Any]:
        """Measure and log the accuracies, and return what the log keeps of them.

        Args:
            epoch_seconds: that an epoch's steps take; 0: not known yet.
        """
        began = time.perf_counter()
        found = self.measure()
        log.info(self._report(found, time.perf_counter() - began, epoch_seconds))
        return {"cross_robustness": found}

    def _report(self, found: Mapping[str, Mapping[str, Accuracies]], seconds: float, epoch: float) -> str:
        """Describe in one line what was measured, and what share of an epoch's steps it took."""
        texts = (
            f"{split} {name} {' / '.join(f'{value:.1f}' for value in accuracies.values())}"
            for split, networks in found.items()
            for name, accuracies in networks.items()
        )
        order = " / ".join(["clean", *(f"on {name}'s" for name in self._networks)])
        share = f", {100 * seconds / epoch:.1f} % of an epoch's steps" if epoch else ""
        return f"cross-robustness ({order}): {', '.join(texts)}; took {format_seconds(seconds)}{share}"

    def _prepared(self) -> Mapping[str, Evaluator]:
        """Return what evaluates all networks, by the images it makes, ready for the present weights."""
        victims = {name: self._step.victim_factory.victim(net, name) for name, net in self._networks.items()}
        for victim in victims.values():
            victim.refresh()
        if not self._evaluators:
            # Kept: each records CUDA graphs of its own, which are replayed in all later epochs.
            attack, kernels = self.config.attack, self._step.victim_factory.kernels
            attacks = {
                f"on_{name}": label_pgd(
                    victim, kernels, attack.epsilon, attack.step_size, self.config.record.steps,
                    self.config.seed, "cross-robustness", attack.norm,
                )
                for name, victim in victims.items()
            }  # fmt: skip
            every = {"clean": no_attack(), **attacks}
            self._evaluators = {name: self._evaluator(name, attack) for name, attack in every.items()}
        return self._evaluators

    def _evaluator(self, what: str, attack: LabelAttack) -> Evaluator:
        def record(function: Callable[..., Tensor]) -> Callable[..., Tensor]:
            return self._step.recorded(function, f"cross-robustness, {what}")

        networks: Mapping[str, nn.Module] = self._networks
        return Evaluator(networks, attack, self._step.victim_factory.context, record)


def _place(name: str) -> int:
    """Sort the student first, then its tutors."""
    return ("student", "peer", "teacher", "natural_teacher").index(name)
