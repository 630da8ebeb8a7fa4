"""AdaAD (Huang et al., CVPR 2023), as its released code computes it.

Inner:  x' maximises KL(T(x') ‖ S(x')), through the teacher T as well                        (eq. 5)
Outer:  α·KL(T(x') ‖ S(x')) + (1 − α)·KL(T(x) ‖ S(x))                                       (eq. 6)

No label is used. The released code averages over the classes too for CIFAR-10 and not for CIFAR-100
(`loss.reduction`). The clean images are run through S first, even where α = 1, for its BatchNorm.
"""

from dataclasses import dataclass

from fastpeer.methods.table import Attack, Divergence, Forward, LossSettings, Method, Reduction


@dataclass(frozen=True, kw_only=True)
class Loss(LossSettings):
    """The weights of AdaAD."""

    alpha: float = 1.0
    """Divergence on adversarial images; what is left to 1 goes to the one on clean images."""
    reduction: Reduction = "mean"
    """Divergences divided by batch x classes (mean, as released for CIFAR-10) or by the batch alone
    (batchmean, as released for CIFAR-100)."""


def table(loss: Loss) -> Method:
    """Fill in the table of AdaAD."""
    clean, adversarial = Forward("student", "clean"), Forward("student", "adversarial")
    teacher_clean, teacher_adversarial = Forward("teacher", "clean"), Forward("teacher", "adversarial")
    return Method(
        trained=("student",),
        attacks={"adversarial": Attack("student", away_from=teacher_adversarial, start="gaussian")},
        forwards=(clean, adversarial),
        terms={
            "student_kl_teacher": Divergence(
                adversarial, teacher_adversarial, loss.alpha, reduction=loss.reduction
            ),
            "student_clean_kl_teacher": Divergence(
                clean, teacher_clean, 1 - loss.alpha, reduction=loss.reduction
            ),
        },
    )
