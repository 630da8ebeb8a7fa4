"""The vocabulary of a method's table: who learns, who is attacked, what is run, what is minimised."""

from dataclasses import dataclass
from typing import Literal

from fastpeer.config import Reduction
from fastpeer.kernels.distill_loss import CrossEntropyTerm, DivergenceTerm, Term

Network = Literal["student", "peer"]
Images = Literal["clean", "adversarial"]


@dataclass(frozen=True)
class Forward:
    """One train-mode pass of a network over the batch; its logits are what terms speak of.

    `counts` is how often the original code makes this very pass. It is made once here, and the
    BatchNorm statistics move as if it had been made so often.
    """

    network: Network
    images: Images
    counts: int = 1


@dataclass(frozen=True)
class Attack:
    """Whose examples are made, and which prediction they lead the student away from.

    The attack climbs KL(p ‖ S(x̃)) with p fixed: p = `network`'s softmax on the clean images in eval mode.
    The attacked network is in eval mode too.
    """

    student: Network
    away_from: Network


@dataclass(frozen=True)
class CrossEntropy:
    """weight · H(y, prediction)."""

    prediction: Forward
    weight: float


@dataclass(frozen=True)
class Divergence:
    """weight · τ² · KL(target ‖ prediction), both softened by τ; `target_grad`: the target learns too."""

    prediction: Forward
    target: Forward
    weight: float
    temperature: float
    target_grad: bool


@dataclass(frozen=True)
class Method:
    """A method's table; the engine does the rest."""

    trained: tuple[Network, ...]
    """Networks with an optimizer each; the student is the one that is evaluated and averaged."""
    attack: Attack | None
    forwards: tuple[Forward, ...]
    """In the order in which BatchNorm sees them."""
    terms: dict[str, CrossEntropy | Divergence]
    """What is added up and minimised, by the name the logs use."""
    reduction: Reduction

    def loss_terms(self) -> list[Term]:
        """Return the terms as the loss kernel takes them: forwards by their number."""
        return [self._numbered(term) for term in self.terms.values()]

    def _numbered(self, term: CrossEntropy | Divergence) -> Term:
        prediction = self.forwards.index(term.prediction)
        if isinstance(term, CrossEntropy):
            return CrossEntropyTerm(prediction, term.weight)
        target = self.forwards.index(term.target)
        return DivergenceTerm(
            prediction, target, term.weight, term.temperature, self.reduction, term.target_grad
        )
