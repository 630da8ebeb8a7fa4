"""IAD-I, on ARD (Zhu et al., ICLR 2022), as its released code computes it.

Inner:  x' maximises H(y, S(x')), S in train mode
Outer:  α·(τ²·KL(T(x) ‖ S(x')) + (1 − aᵢ)·KL(S(x) ‖ S(x'))) + (1 − α)·H(y, S(x)),  aᵢ = T(x'ᵢ)[yᵢ]^β

The second divergence, whose target learns too, begins at epoch `loss.begin`. The paper trusts the teacher
by three cases; the code has the weight aᵢ alone, and never lessens the teacher's own term by it. S is run
on x' a second time to no purpose but BatchNorm's, and on x for the entropy that α = 1 leaves out.
"""

from dataclasses import dataclass, replace

from fastpeer.methods.table import (
    LABELS,
    Attack,
    Confidence,
    CrossEntropy,
    Divergence,
    Forward,
    Later,
    LossSettings,
    Method,
)


@dataclass(frozen=True, kw_only=True)
class Loss(LossSettings):
    """The weights of IAD-I."""

    alpha: float = 1.0
    """Both divergences; what is left to 1 goes to the cross-entropy on clean images."""
    beta: float = 0.1
    """Exponent of the teacher's confidence in the label."""
    temperature: float = 1.0
    """τ of the divergence from the teacher."""
    begin: int = 60
    """Epoch, counted from 0, from which on the student is its own teacher too."""


def table(loss: Loss) -> Method:
    """Fill in the table of IAD-I."""
    teacher_clean, teacher_adversarial = Forward("teacher", "clean"), Forward("teacher", "adversarial")
    adversarial, clean = Forward("student", "adversarial"), Forward("student", "clean")
    doubt = Confidence(teacher_adversarial, loss.beta, complement=True)
    from_teacher = Divergence(adversarial, teacher_clean, loss.alpha, loss.temperature)
    from_itself = Divergence(adversarial, clean, loss.alpha, target_grad=True, sample_weight=doubt)
    entropy = CrossEntropy(clean, 1 - loss.alpha)
    first = Method(
        trained=("student",),
        attacks={"adversarial": Attack("student", LABELS, start="uniform", batchnorm="train")},
        forwards=(adversarial, adversarial, clean),
        terms={"student_kl_teacher": from_teacher, "student_ce": entropy},
    )
    second = replace(
        first,
        forwards=(adversarial, adversarial, clean, clean),
        terms={
            "student_kl_teacher": from_teacher,
            "student_kl_clean": from_itself,
            "student_ce": entropy,
        },
    )
    return replace(first, later=Later(loss.begin, second))
