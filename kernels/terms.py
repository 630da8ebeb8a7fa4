"""The terms of a loss, shared by the methods' tables, the formula in PyTorch and the fused kernel.

They are generic over what names a forward: in a method's table a `Forward`, in a kernel an int, the index
into the list of logits. There is no PyTorch here, so that a command can read a table without importing it.
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
        kind: names the class for code that Triton compiles, where isinstance does not exist.
        target_grad: False: labels get no gradient.
        prediction: the forward that gets the gradient.
        weight: factor of the term.
        sample_weight: multiplies each sample's share before the mean; the divisor is the batch all the same.
            In a method's table a `Confidence`, in a kernel the index into the list of sample weights.
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
        prediction, weight, sample_weight: as in `CrossEntropy`.
        target: the forward that the prediction is pulled to.
        temperature: τ.
        reduction: what the sum over the classes is divided by.
        target_grad: the target gets a gradient too.
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
    """weight · ‖prediction − target‖² of the logits; fields as in `Divergence`."""

    kind: ClassVar[str] = "logit_distance"
    prediction: ForwardName
    target: ForwardName
    weight: float
    reduction: Reduction = "mean"
    target_grad: bool = False
    sample_weight: Confidence[ForwardName] | int | None = None


KernelTerm = CrossEntropy[ForwardName] | Divergence[ForwardName] | LogitDistance[ForwardName]
"""What `distill_loss` evaluates."""
