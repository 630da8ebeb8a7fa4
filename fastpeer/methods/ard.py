"""ARD (Goldblum et al., AAAI 2020), as its released code computes it.

Inner:  x' maximises H(y, S(x')), S in train mode
Outer:  α·τ²·KL(T(x) ‖ S(x')) + (1 − α)·H(y, S(x))                                          (eq. 3)

The divergence is averaged over the classes too (`loss.reduction`). The clean images are run through S even
where α = 1, for its BatchNorm. In the IAD repository's form, τ = 1 and the reduction is batchmean.
"""

from dataclasses import dataclass

from fastpeer.methods.table import (
    LABELS,
    Attack,
    CrossEntropy,
    Divergence,
    Forward,
    LossSettings,
    Method,
    Reduction,
)


@dataclass(frozen=True, kw_only=True)
class Loss(LossSettings):
    """The weights of ARD."""

    alpha: float = 1.0
    """Divergence from the teacher; what is left to 1 goes to the cross-entropy on clean images."""
    temperature: float = 30.0
    """τ of the divergence."""
    reduction: Reduction = "mean"
    """Divergence divided by batch x classes (mean, as released) or by the batch alone (batchmean)."""


def table(loss: Loss) -> Method:
    """Fill in the table of ARD."""
    teacher_clean = Forward("teacher", "clean")
    adversarial, clean = Forward("student", "adversarial"), Forward("student", "clean")
    return Method(
        trained=("student",),
        attacks={"adversarial": Attack("student", LABELS, start="uniform", batchnorm="train")},
        forwards=(adversarial, clean),
        terms={
            "student_kl_teacher": Divergence(
                adversarial, teacher_clean, loss.alpha, loss.temperature, loss.reduction
            ),
            "student_ce": CrossEntropy(clean, 1 - loss.alpha),
        },
    )
