"""Robustness that looks too good, found while training: catastrophic overfitting and hidden gradients."""

import logging
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from torch import Tensor, nn

from fastpeer.config import Config
from fastpeer.data.stream import EvaluationStream
from fastpeer.evaluation.accuracy import Evaluator
from fastpeer.evaluation.attacks import LabelAttack, fgsm, label_pgd, no_attack
from fastpeer.evaluation.hidden_gradients import hidden_gradients
from fastpeer.evaluation.results import wilson_interval
from fastpeer.kernels.choice import torch_kernels
from fastpeer.methods import Method
from fastpeer.training.setup import TrainingSetup
from fastpeer.victims.autograd import AutogradVictim

log = logging.getLogger(__name__)
IMAGES = 64
"""Training images that are attacked: with 10 steps, less work than a single step of a usual training."""
STEPS = 10
STEP_SHARE = 2.5
"""Madry et al.'s rule: the step size of PGD is 2.5 epsilon / steps."""
FEW_STEPS = 3
"""Training attacks of so few steps may be overfitted catastrophically (Wong et al. 2020)."""
LEARNT = 40.0
"""Accuracy in % under the training attack from which on a student has learnt to withstand it."""
BETTER = 0.25
"""Share of what guessing leaves wrong that it must be right on, too, where there are few classes."""
LOST = 0.5
"""Share of that accuracy that is left under PGD at least, where the student is robust."""
KEPT = 0.5
"""Share of it that clean images have at least; with less, BatchNorm's statistics are not there yet."""


@dataclass(frozen=True)
class Doubt:
    """Why a student's robustness may be none: what kind of reason, and the line that tells it."""

    kind: str
    line: str


class TooGood:
    """Looks at an epoch's end whether the student only seems robust, logs why, and returns it.

    Args:
        config: the run's settings.
        setup: its networks and images.
    """

    def __init__(self, config: Config, setup: TrainingSetup) -> None:
        self._attack, self._seed = config.attack, config.seed
        self._student = setup.networks["student"]
        self._selection = setup.selection
        training = setup.training
        every = EvaluationStream(training.source, training.indices, training.dtype)
        self._images = every.sample(IMAGES)
        self._kernels = torch_kernels()
        self._victim = AutogradVictim(self._student, self._kernels)
        guessing = 100 / setup.classes
        self._learnt = max(LEARNT, guessing + BETTER * (100 - guessing))
        # Those that were so before the training were logged then.
        self._told = set(setup.warnings.get("student", ()))

    def record(
        self, method: Method, accuracy: Mapping[str, float], selected: Mapping[str, float]
    ) -> dict[str, list[str]]:
        """Return what the log keeps: why the student's robustness may be none; mostly nothing.

        What was not so at the last call is logged as a warning.

        Args:
            method: the epoch's table.
            accuracy: accuracies in % on the last training batches, by forward, such as student_adversarial.
            selected: the student's accuracies in %, that epochs are selected by.
        """
        attacked = [
            accuracy[f"student_{name}"]
            for name, attack in method.attacks.items()
            if attack.victim == "student" and f"student_{name}" in accuracy
        ]
        doubts = [Doubt(reason, reason) for reason in hidden_gradients(self._student, self._selection)]
        if attacked and self._is_suspect(max(attacked), min(selected.values())):
            doubts += self._under_attack(max(attacked))
        for doubt in doubts:
            if doubt.kind not in self._told:
                log.warning("the student: %s", doubt.line)
        self._told = {doubt.kind for doubt in doubts}
        return {"warnings": [doubt.line for doubt in doubts]} if doubts else {}

    def _is_suspect(self, attacked: float, selected: float) -> bool:
        """Whether PGD on training images is worth its time: seldom, with an attack of many steps."""
        few = 0 < self._attack.steps <= FEW_STEPS
        return (
            attacked >= self._learnt
            and self._attack.epsilon > 0
            and self._attack.steps > 0
            and (few or selected < LOST * attacked)
        )

    def _under_attack(self, attacked: float) -> Iterator[Doubt]:
        """Attack training images, on which a student that overfits as usual is robust."""
        ball = self._attack.epsilon, self._attack.norm
        pgd, step = self._correct(self._pgd()), self._correct(fgsm(self._victim, self._kernels, *ball))
        images, clean = len(pgd), self._correct(no_attack())
        share, high = 100 * pgd.double().mean().item(), wilson_interval(int(pgd.sum()), images)[1]
        if high < LOST * attacked and 100 * clean.double().mean().item() >= KEPT * attacked:
            yield Doubt(
                "overfitting",
                f"catastrophic overfitting: right on {attacked:.0f} % under the training attack, on"
                f" {share:.0f} % of {images} training images under PGD-{STEPS}; it is robust against its own"
                " attack alone: more --attack.steps, or a smaller --attack.step-size",
            )
        if wilson_interval(int(step.sum()), images)[1] < wilson_interval(int(pgd.sum()), images)[0]:
            yield Doubt(
                "one step",
                f"one step of the gradient's sign leaves {100 * step.double().mean().item():.0f} % right,"
                f" PGD-{STEPS} {share:.0f} %: its gradients mislead attacks, accuracies may be too high",
            )

    def _pgd(self) -> LabelAttack:
        epsilon, norm = self._attack.epsilon, self._attack.norm
        size = STEP_SHARE * epsilon / STEPS
        return label_pgd(self._victim, self._kernels, epsilon, size, STEPS, self._seed, "overfitting", norm)

    def _correct(self, attack: LabelAttack) -> Tensor:
        networks: Mapping[str, nn.Module] = {"student": self._student}
        return Evaluator(networks, attack).correct(self._images)["student"]
