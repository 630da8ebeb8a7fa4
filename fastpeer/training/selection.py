"""Accuracies at an epoch's end, by which the best epoch is chosen."""

from collections.abc import Callable, Iterator, Mapping

from torch import Tensor, nn

from fastpeer.config import Config
from fastpeer.data.stream import Batch, EvaluationStream
from fastpeer.evaluation.accuracy import Evaluator
from fastpeer.evaluation.attacks import LabelAttack, label_pgd, no_attack
from fastpeer.victims.factory import VictimFactory
from fastpeer.victims.interface import Victim

Accuracies = dict[str, float]
"""Per cent, by name: clean, pgd10."""


class Selection:
    """Evaluates networks on the images that the selection is made on.

    Args:
        config: of the run.
        stream: the images: the held-out part, or the test split.
        victim_factory: how networks are run and attacked.
        attacked: whether the method trains for robustness, so that PGD accuracy decides.
        check: called between batches; raises to stop.
        record: takes a function of tensors and its name, and returns one that does the same, such as a
            captured one.
    """

    def __init__(
        self,
        config: Config,
        stream: EvaluationStream,
        victim_factory: VictimFactory,
        attacked: bool,
        check: Callable[[], None],
        record: Callable[[Callable[..., Tensor], str], Callable[..., Tensor]],
    ) -> None:
        self.split = config.selection.split
        self.precision = config.precision
        self.images = len(stream.indices)
        self.robust = f"pgd{config.selection.steps}"
        self.metric = self.robust if attacked else "clean"
        self._stream = stream
        self._victim_factory = victim_factory
        self._check = check
        self._record = record
        self._evaluators: dict[str, tuple[Evaluator, Evaluator]] = {}
        self._attack = config.attack
        self._steps, self._seed = config.selection.steps, config.seed

    def describe(self) -> str:
        """Say what the accuracies at an epoch's end are, and on which images."""
        images = "held-out training images" if self.split == "val" else "test images"
        where = f"{self.images} {images} (selection.split = {self.split})"
        return f"clean / {self.robust} accuracy in % on {where}, in {self.precision}"

    def evaluate(self, networks: Mapping[str, nn.Module], attacked: str) -> dict[str, Accuracies]:
        """Return the accuracies of all networks, clean and on PGD examples aimed at one of them.

        The networks of a name must be the same each time: they are prepared once.
        """
        victim = self._victim_factory.victim(networks[attacked], attacked)
        victim.refresh()
        if attacked not in self._evaluators:
            attacks = {"clean images": no_attack(), "adversarial images": self._pgd(victim)}
            clean, adversarial = (self._evaluator(networks, what, attack) for what, attack in attacks.items())
            self._evaluators[attacked] = clean, adversarial
        natural, robust = (self._accuracy(evaluator) for evaluator in self._evaluators[attacked])
        # A network's own examples and another's are two questions: the second is a transfer attack.
        names = {
            name: self.robust if name == attacked else f"{self.robust}_on_{attacked}" for name in networks
        }
        return {name: {"clean": natural[name], names[name]: robust[name]} for name in networks}

    def is_better(self, accuracies: Mapping[str, float], best: Mapping[str, float]) -> bool:
        """Compare by the metric; where that is equal, by the clean accuracy."""
        return (accuracies[self.metric], accuracies["clean"]) > (best[self.metric], best["clean"])

    def _evaluator(self, networks: Mapping[str, nn.Module], what: str, attack: LabelAttack) -> Evaluator:
        def record(function: Callable[..., Tensor]) -> Callable[..., Tensor]:
            return self._record(function, f"the selection on {what}")

        return Evaluator(networks, attack, self._victim_factory.context, record)

    def _pgd(self, victim: Victim) -> LabelAttack:
        attack, kernels = self._attack, self._victim_factory.kernels
        return label_pgd(
            victim, kernels, attack.epsilon, attack.step_size, self._steps, self._seed, "selection"
        )

    def _accuracy(self, evaluator: Evaluator) -> Accuracies:
        return {name: _percent(right) for name, right in evaluator.correct(self._batches()).items()}

    def _batches(self) -> Iterator[Batch]:
        for batch in self._stream:
            self._check()
            yield batch


def _percent(right: Tensor) -> float:
    return 100 * right.double().mean().item()
