"""What is minimised: the sum of terms over the logits of forwards."""

from dataclasses import dataclass

from fastpeer.kernels.reduction import Reduction
from fastpeer.methods.table.forwards import Forward, Network


@dataclass(frozen=True)
class Confidence:
    """A weight for each sample: how sure `forward` is of the label, p(y)^power; a constant for the gradient.

    Attributes:
        forward: whose logits.
        power: the exponent.
        complement: 1 − p(y)^power instead.
    """

    forward: Forward
    power: float
    complement: bool = False


@dataclass(frozen=True)
class CrossEntropy:
    """weight · H(y, prediction), averaged over the batch."""

    prediction: Forward
    weight: float
    sample_weight: Confidence | None = None


@dataclass(frozen=True)
class Divergence:
    """weight · τ² · KL(target ‖ prediction), both softened by τ; `target_grad`: the target learns too."""

    prediction: Forward
    target: Forward
    weight: float
    temperature: float = 1.0
    reduction: Reduction = "batchmean"
    target_grad: bool = False
    sample_weight: Confidence | None = None


@dataclass(frozen=True)
class LogitDistance:
    """weight · ‖prediction − target‖² of the logits; `target_grad`: the target learns too."""

    prediction: Forward
    target: Forward
    weight: float
    reduction: Reduction = "mean"
    target_grad: bool = False
    sample_weight: Confidence | None = None


@dataclass(frozen=True)
class InputGradientDistance:
    """weight · ‖∇ₓ H(y, prediction) − ∇ₓ H(y, teacher)‖₂ / B.

    Both entropies are means over the batch of B samples, the norm is that of the whole batch's gradient.
    No kernel holds this term: it needs a second derivative. Its forward is run by itself, uncompiled.
    """

    prediction: Forward
    teacher: Network
    weight: float


@dataclass(frozen=True)
class Balance:
    """Weights of two divergences that follow their progress, 1 − w and w (Zhao et al., MTARD).

    r = value / value at the first step, for each; w ← w − rate·(w − r₂ / (r₁ + r₂)) in every step, before
    the losses are weighted by it; w starts at 1/2.

    Attributes:
        terms: names of the two; their own weights multiply these.
        rate: as long as the learning rate is what it was at first; it falls with it.
        offset: added to the target's probabilities within the logarithm, for these values alone.
    """

    terms: tuple[str, str]
    rate: float
    offset: float


Term = CrossEntropy | Divergence | LogitDistance | InputGradientDistance


def forwards_of(term: Term) -> tuple[Forward, ...]:
    """Return the forwards that a term speaks of: its prediction, its target, its sample weight's."""
    if isinstance(term, InputGradientDistance):
        return (term.prediction,)
    ends = (term.prediction,) if isinstance(term, CrossEntropy) else (term.prediction, term.target)
    return ends if term.sample_weight is None else (*ends, term.sample_weight.forward)
