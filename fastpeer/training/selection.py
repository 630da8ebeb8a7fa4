"""Accuracies at an epoch's end, which select the best epoch."""

from collections.abc import Callable, Iterator, Mapping
from typing import Any

from torch import Tensor, nn

from fastpeer.config import Config
from fastpeer.data.stream import Batch, EvaluationStream
from fastpeer.evaluation.accuracy import Evaluator
from fastpeer.evaluation.attacks import LabelAttack, label_pgd, no_attack
from fastpeer.victims.factory import VictimFactory
from fastpeer.victims.interface import Victim

Accuracies = dict[str, float]
"""Accuracies in % by name, such as clean and pgd10."""


class Selection:
    """Evaluates networks at an epoch's end and compares epochs.

    Args:
        config: the run's settings.
        stream: the images to evaluate on: the held-out training images, or the test split.
        victim_factory: prepares networks for the attack.
        by_robustness: whether PGD accuracy selects the epoch; else clean accuracy does.
        check: called before each batch; raises to stop the run.
        record: takes a function of tensors and its name for the log, and returns an equivalent function, for
            instance one that replays a CUDA graph.

    Attributes:
        split: val (held-out training images) or test.
        precision: the run's precision, which the accuracies are measured in.
        images: number of images.
        robust: name of the PGD accuracy, such as pgd10.
        metric: name of the accuracy that selects the epoch.
    """

    def __init__(
        self,
        config: Config,
        stream: EvaluationStream,
        victim_factory: VictimFactory,
        by_robustness: bool,
        check: Callable[[], None],
        record: Callable[[Callable[..., Tensor], str], Callable[..., Tensor]],
    ) -> None:
        self.split = config.selection.split
        self.precision = config.precision
        self.images = len(stream.indices)
        self.robust = f"pgd{config.selection.steps}"
        self.metric = self.robust if by_robustness else "clean"
        self._stream = stream
        self._victim_factory = victim_factory
        self._check = check
        self._record = record
        self._evaluators: dict[str, tuple[Evaluator, Evaluator]] = {}
        self._attack = config.attack
        self._steps, self._seed = config.selection.steps, config.seed

    def describe(self) -> str:
        """Describe in one line which accuracies are measured, and on which images."""
        images = "held-out training images" if self.split == "val" else "test images"
        where = f"{self.images} {images} (selection.split = {self.split})"
        norm = "" if self._attack.norm == "linf" else f" (norm {self._attack.norm})"
        return f"clean / {self.robust} accuracy{norm} in % on {where}, in {self.precision}"

    def evaluate(self, networks: Mapping[str, nn.Module], attacked: str) -> dict[str, Accuracies]:
        """Return the accuracies of all networks, clean and on PGD examples made against one of them.

        Args:
            networks: by name; for each `attacked` the same modules at every call, as they are prepared once.
            attacked: name of the network that the PGD examples are made against.
        """
        victim = self._victim_factory.victim(networks[attacked], attacked)
        victim.refresh()
        if attacked not in self._evaluators:
            # Kept: each evaluator records CUDA graphs of its own, which are replayed in all later epochs.
            attacks = {"clean images": no_attack(), "adversarial images": self._pgd(victim)}
            clean, adversarial = (self._evaluator(networks, what, attack) for what, attack in attacks.items())
            self._evaluators[attacked] = clean, adversarial
        natural, robust = (self._accuracies(evaluator) for evaluator in self._evaluators[attacked])
        # For the other networks it is a transfer attack, not comparable with their own PGD accuracy.
        names = {
            name: self.robust if name == attacked else f"{self.robust}_on_{attacked}" for name in networks
        }
        return {name: {"clean": natural[name], names[name]: robust[name]} for name in networks}

    def record(self, accuracies: Mapping[str, Accuracies]) -> dict[str, Any]:
        """Return what the log keeps of an evaluated epoch, but for the epoch and its warnings."""
        facts = {"split": self.split, "images": self.images, "precision": self.precision}
        return {**facts, "selection": accuracies}

    def is_better(self, accuracies: Mapping[str, float], best: Mapping[str, float]) -> bool:
        """Compare by the metric, then by clean accuracy; of equal epochs, the first stays the best."""
        return (accuracies[self.metric], accuracies["clean"]) > (best[self.metric], best["clean"])

    def _evaluator(self, networks: Mapping[str, nn.Module], what: str, attack: LabelAttack) -> Evaluator:
        def record(function: Callable[..., Tensor]) -> Callable[..., Tensor]:
            return self._record(function, f"the selection on {what}")

        return Evaluator(networks, attack, self._victim_factory.context, record)

    def _pgd(self, victim: Victim) -> LabelAttack:
        attack, kernels = self._attack, self._victim_factory.kernels
        return label_pgd(
            victim, kernels, attack.epsilon, attack.step_size, self._steps, self._seed, "selection",
            attack.norm,
        )  # fmt: skip

    def _accuracies(self, evaluator: Evaluator) -> Accuracies:
        return {name: percent(correct) for name, correct in evaluator.correct(self._batches()).items()}

    def _batches(self) -> Iterator[Batch]:
        for batch in self._stream:
            self._check()
            yield batch


def percent(correct: Tensor) -> float:
    """Return the accuracy in % of bool (N,)."""
    return 100 * correct.double().mean().item()
