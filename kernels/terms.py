"""The terms of a loss, without PyTorch: what a method's table, the formula and the fused kernel all speak of.

They are generic over what names a forward: a `Forward` in a method's table, for a kernel an int, its place in
the list of logits.
"""

from dataclasses import dataclass
from typing import ClassVar, Generic, Literal, TypeVar

ForwardName = TypeVar("ForwardName")
Reduction = Literal["mean", "batchmean"]
"""Divided by the batch alone (batchmean: the mathematical divergence), or by the classes on top of that
(mean: PyTorch's default, and so what much released code computes)."""


@dataclass(frozen=True)
class Confidence(Generic[ForwardName]):
    """A weight for each sample: how sure `forward` is of the label, p(y)^power; a constant for the gradient.

    Attributes:
        forward: whose logits.
        power: the exponent.
        complement: 1 − p(y)^power instead.
    """

    forward: ForwardName
    power: float
    complement: bool = False


@dataclass(frozen=True)
class CrossEntropy(Generic[ForwardName]):
    """weight · H(y, softmax(prediction)), averaged over the batch.

    Attributes:
        kind: here and below: the class, for code that Triton compiles, which knows no classes.
        target_grad: the labels do not learn.
        prediction: here and below: the forward that learns.
        weight: here and below: factor of the term.
        sample_weight: here and below: what each sample's share is multiplied by before it is averaged; the
            divisor does not see it. A `Confidence` in a method's table, for a kernel the place (an int) in
            the list of sample weights.
    """

    kind: ClassVar[str] = "cross_entropy"
    target_grad: ClassVar[bool] = False
    prediction: ForwardName
    weight: float
    sample_weight: Confidence[ForwardName] | int | None = None


@dataclass(frozen=True)
class Divergence(Generic[ForwardName]):
    """weight · τ² · KL(softmax(target/τ) ‖ softmax(prediction/τ)).

    Attributes:
        target: here and below: the forward that the prediction is to follow.
        temperature: τ.
        reduction: here and below: what the sum over the classes is divided by.
        target_grad: here and below: the target learns too.
    """

    kind: ClassVar[str] = "divergence"
    prediction: ForwardName
    target: ForwardName
    weight: float
    temperature: float = 1.0
    reduction: Reduction = "batchmean"
    target_grad: bool = False
    sample_weight: Confidence[ForwardName] | int | None = None


@dataclass(frozen=True)
class LogitDistance(Generic[ForwardName]):
    """weight · ‖prediction − target‖² of the logits."""

    kind: ClassVar[str] = "logit_distance"
    prediction: ForwardName
    target: ForwardName
    weight: float
    reduction: Reduction = "mean"
    target_grad: bool = False
    sample_weight: Confidence[ForwardName] | int | None = None


KernelTerm = CrossEntropy[ForwardName] | Divergence[ForwardName] | LogitDistance[ForwardName]
"""What `distill_loss` evaluates."""
