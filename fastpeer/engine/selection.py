"""Accuracies at an epoch's end, by which the best epoch is chosen."""

from collections.abc import Callable, Iterator, Mapping

from torch import Tensor, nn

from fastpeer.attack.accuracy import MakeExamples, clean, correct_predictions, label_pgd
from fastpeer.config import Config
from fastpeer.data.stream import Batch, EvaluationStream
from fastpeer.engine.precision import NumberFormat

Accuracies = dict[str, float]
"""Per cent, by name: clean, pgd10."""


class Selection:
    """Evaluates networks on the images that the selection is made on.

    Args:
        config: of the run.
        stream: the images: the held-out part, or the test split.
        classes: how many there are.
        number_format: what to compute in.
        attacked: whether the method trains for robustness, so that PGD accuracy decides.
        check: called between batches; raises to stop.
    """

    def __init__(
        self,
        config: Config,
        stream: EvaluationStream,
        classes: int,
        number_format: NumberFormat,
        attacked: bool,
        check: Callable[[], None],
    ) -> None:
        self.split = config.selection.split
        self.precision = config.precision
        self.images = len(stream.indices)
        self.robust = f"pgd{config.selection.steps}"
        self.metric = self.robust if attacked else "clean"
        self._stream = stream
        self._format = number_format
        self._check = check
        attack = config.attack
        steps = config.selection.steps
        self._pgd = label_pgd(attack.epsilon, attack.step_size, steps, classes, config.seed, "selection")

    def describe(self) -> str:
        """Say what the accuracies at an epoch's end are, and on which images."""
        images = "held-out training images" if self.split == "val" else "test images"
        where = f"{self.images} {images} (selection.split = {self.split})"
        return f"clean / {self.robust} accuracy in % on {where}, in {self.precision}"

    def evaluate(self, networks: Mapping[str, nn.Module], attacked: str) -> dict[str, Accuracies]:
        """Return the accuracies of all networks, clean and on PGD examples aimed at one of them."""
        with self._format.autocasting(self._stream.device):
            natural = self._accuracy(networks, attacked, clean)
            robust = self._accuracy(networks, attacked, self._pgd)
        # A network's own examples and another's are two questions: the second is a transfer attack.
        names = {
            name: self.robust if name == attacked else f"{self.robust}_on_{attacked}" for name in networks
        }
        return {name: {"clean": natural[name], names[name]: robust[name]} for name in networks}

    def is_better(self, accuracies: Mapping[str, float], best: Mapping[str, float]) -> bool:
        """Compare by the metric; where that is equal, by the clean accuracy."""
        return (accuracies[self.metric], accuracies["clean"]) > (best[self.metric], best["clean"])

    def _accuracy(self, networks: Mapping[str, nn.Module], attacked: str, attack: MakeExamples) -> Accuracies:
        hits = correct_predictions(networks, attacked, self._batches(), attack)
        return {name: _percent(right) for name, right in hits.items()}

    def _batches(self) -> Iterator[Batch]:
        for batch in self._stream:
            self._check()
            yield batch


def _percent(right: Tensor) -> float:
    return 100 * right.double().mean().item()
