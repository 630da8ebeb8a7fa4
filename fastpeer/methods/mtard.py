"""MTARD (Zhao et al., ECCV 2022), as its released code computes it.

Inner:  x' maximises H(y, S(x'))
Outer:  (1 − w)·KL(T(x') ‖ S(x')) + w·KL(N(x) ‖ S(x))                                       (eq. 6)

T was trained robustly and sees the adversarial images, N without an attack and sees the clean ones. w moves
with the progress of both losses in every step (`Balance`). The divergences are averaged over the classes
too; the released code multiplies both by 10 for CIFAR-100 (`loss.scale`).
"""

from dataclasses import dataclass

from fastpeer.methods.table import (
    LABELS,
    Attack,
    Balance,
    Divergence,
    Forward,
    LossSettings,
    Method,
    Reduction,
)


@dataclass(frozen=True, kw_only=True)
class Loss(LossSettings):
    """The weights of MTARD."""

    rate: float = 0.025
    """How fast the weights follow; falls at the milestones as the learning rate does."""
    scale: float = 1.0
    """Factor of both divergences: a tenth of the number of classes, as released for 10 and 100."""
    reduction: Reduction = "mean"
    """Divergences divided by batch x classes (mean, as released) or by the batch alone (batchmean)."""


def table(loss: Loss) -> Method:
    """Fill in the table of MTARD."""
    adversarial, clean = Forward("student", "adversarial"), Forward("student", "clean")
    robust, natural = Forward("teacher", "adversarial"), Forward("natural_teacher", "clean")
    return Method(
        trained=("student",),
        attacks={"adversarial": Attack("student", LABELS, start="gaussian")},
        forwards=(adversarial, clean),
        terms={
            "student_kl_teacher": Divergence(adversarial, robust, loss.scale, reduction=loss.reduction),
            "student_clean_kl_natural": Divergence(clean, natural, loss.scale, reduction=loss.reduction),
        },
        balance=Balance(("student_kl_teacher", "student_clean_kl_natural"), loss.rate, offset=1e-5),
    )
