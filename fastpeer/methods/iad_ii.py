"""IAD-II, on AKD2 (Zhu et al., ICLR 2022), as its released code computes it.

Inner:  x' maximises H(y, S(x')), S in train mode
Outer:  λ₀·H(y, S(x')) + λ₁·τ²·KL(N(x') ‖ S(x'))
        + λ₂·τ²·(aᵢ·KL(T(x') ‖ S(x')) + (1 − aᵢ)·KL(S(x) ‖ S(x'))),  aᵢ = T(x'ᵢ)[yᵢ]^β

The teachers' divergences are softened by τ, the student's own by 1. Until epoch `loss.begin`, aᵢ = 1 and that
last divergence, whose target learns too, is left out. N was trained without an attack, T robustly.
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
    Term,
)


@dataclass(frozen=True, kw_only=True)
class Loss(LossSettings):
    """The weights of IAD-II."""

    labels: float = 0.25
    """λ₀: cross-entropy with the labels."""
    natural: float = 0.25
    """λ₁: divergence from the naturally trained teacher."""
    robust: float = 0.5
    """λ₂: divergences from the robust teacher and from the student's own clean prediction."""
    beta: float = 0.1
    """Exponent of the robust teacher's confidence in the label."""
    temperature: float = 1.0
    """τ of the divergences from teachers."""
    begin: int = 40
    """Epoch, counted from 0, from which on the student is its own teacher too."""


def table(loss: Loss) -> Method:
    """Fill in the table of IAD-II."""
    adversarial, clean = Forward("student", "adversarial"), Forward("student", "clean")
    robust, natural = Forward("teacher", "adversarial"), Forward("natural_teacher", "adversarial")
    trust, doubt = (Confidence(robust, loss.beta, complement) for complement in (False, True))
    from_teacher = Divergence(adversarial, robust, loss.robust, loss.temperature)
    # Its factor is τ² as well, but its own temperature is 1.
    own_weight = loss.robust * loss.temperature**2
    from_itself = Divergence(adversarial, clean, own_weight, target_grad=True, sample_weight=doubt)
    always: dict[str, Term] = {
        "student_ce": CrossEntropy(adversarial, loss.labels),
        "student_kl_natural": Divergence(adversarial, natural, loss.natural, loss.temperature),
    }
    first = Method(
        trained=("student",),
        attacks={"adversarial": Attack("student", LABELS, start="uniform", batchnorm="train")},
        forwards=(adversarial,),
        terms={**always, "student_kl_teacher": from_teacher},
    )
    second = replace(
        first,
        forwards=(adversarial, clean),
        terms={
            **always,
            "student_kl_teacher": replace(from_teacher, sample_weight=trust),
            "student_kl_clean": from_itself,
        },
    )
    return replace(first, later=Later(loss.begin, second))
