"""KDIGA (Shao et al., arXiv 2110.12072), as its released code computes it.

α·τ²·KL(T(x) ‖ S(x)) + (1 − α)·H(y, S(x)) + γ·‖∇ₓ H(y, S(x)) − ∇ₓ H(y, T(x))‖₂ / B

With `loss.adversarial`, on adversarial distillation: the divergence is KL(T(x') ‖ S(x')), where x' maximises
H(y, S(x')) with S in train mode; T sees x' as well, unlike in ARD. The norm is that of the whole batch's
gradient, so that the term's strength depends on the batch size B.
"""

from dataclasses import dataclass

from fastpeer.methods.table import (
    LABELS,
    Attack,
    CrossEntropy,
    Divergence,
    Forward,
    InputGradientDistance,
    LossSettings,
    Method,
    Reduction,
)


@dataclass(frozen=True, kw_only=True)
class Loss(LossSettings):
    """The weights of KDIGA."""

    adversarial: bool = False
    """Distil on adversarial images."""
    alpha: float = 0.5
    """Divergence from the teacher; what is left to 1 goes to the cross-entropy on clean images."""
    gamma: float = 0.5
    """Distance of the input gradients."""
    temperature: float = 1.0
    """τ of the divergence."""
    reduction: Reduction = "mean"
    """Divergence divided by batch x classes (mean, as released) or by the batch alone (batchmean)."""


def table(loss: Loss) -> Method:
    """Fill in the table of KDIGA."""
    images = "adversarial" if loss.adversarial else "clean"
    distilled, teacher = Forward("student", images), Forward("teacher", images)
    clean = Forward("student", "clean")
    attack = Attack("student", LABELS, start="uniform", batchnorm="train")
    return Method(
        trained=("student",),
        attacks={"adversarial": attack} if loss.adversarial else {},
        # The entropy has a run of its own where the divergence is on other images.
        forwards=(distilled, clean, clean) if loss.adversarial else (clean, clean),
        terms={
            "student_kl_teacher": Divergence(
                distilled, teacher, loss.alpha, loss.temperature, loss.reduction
            ),
            "student_ce": CrossEntropy(clean, 1 - loss.alpha),
            "input_gradient": InputGradientDistance(clean, "teacher", loss.gamma),
        },
    )
