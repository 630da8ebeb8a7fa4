"""RSLAD (Zi et al., ICCV 2021), as its released code computes it.

Inner:  x' maximises KL(T(x) ‖ S(x'))
Outer:  α·KL(T(x) ‖ S(x')) + (1 − α)·KL(T(x) ‖ S(x)), α = 5/6                               (eq. 5)

No label is used. The divergences are averaged over the classes too; the released code multiplies both by 10
for CIFAR-100, so that they are as large as for CIFAR-10's ten classes (`loss.scale`).
"""

from dataclasses import dataclass

from fastpeer.methods.table import Attack, Divergence, Forward, LossSettings, Method, Reduction


@dataclass(frozen=True, kw_only=True)
class Loss(LossSettings):
    """The weights of RSLAD."""

    alpha: float = 5 / 6
    """Divergence on adversarial images; what is left to 1 goes to the one on clean images."""
    scale: float = 1.0
    """Factor of both: a tenth of the number of classes, as released for 10 and 100."""
    reduction: Reduction = "mean"
    """Divergences divided by batch x classes (mean, as released) or by the batch alone (batchmean)."""


def table(loss: Loss) -> Method:
    """Fill in the table of RSLAD."""
    teacher_clean = Forward("teacher", "clean")
    adversarial, clean = Forward("student", "adversarial"), Forward("student", "clean")
    weights = loss.scale * loss.alpha, loss.scale * (1 - loss.alpha)
    return Method(
        trained=("student",),
        attacks={"adversarial": Attack("student", away_from=teacher_clean, start="gaussian")},
        forwards=(adversarial, clean),
        terms={
            "student_kl_teacher": Divergence(
                adversarial, teacher_clean, weights[0], reduction=loss.reduction
            ),
            "student_clean_kl_teacher": Divergence(
                clean, teacher_clean, weights[1], reduction=loss.reduction
            ),
        },
    )
