"""AKD2, "KD and SWA" (Chen et al., ICLR 2021), as its released code computes it.

Inner:  x' maximises H(y, S(x')), S in train mode, from a start within [0, 1]
Outer:  λ₀·H(y, S(x')) + λ₁·τ²·KL(N(x') ‖ S(x')) + λ₂·τ²·KL(T(x') ‖ S(x'))

N was trained without an attack, T robustly; both see the adversarial images. The code writes the
divergences as soft cross-entropies, whose gradient is the same. In the IAD repository's form, the weights
are 1/4, 1/4 and 1/2, τ = 1 and the start is not clamped (`attack.clamp_start = "off"`).
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
)


@dataclass(frozen=True, kw_only=True)
class Loss(LossSettings):
    """The weights of AKD2."""

    labels: float = 0.3
    """λ₀: cross-entropy with the labels."""
    natural: float = 0.1
    """λ₁: divergence from the naturally trained teacher."""
    robust: float = 0.6
    """λ₂: divergence from the robust teacher."""
    temperature: float = 2.0
    """τ of both divergences."""


def table(loss: Loss) -> Method:
    """Fill in the table of AKD2."""
    adversarial = Forward("student", "adversarial")
    robust, natural = Forward("teacher", "adversarial"), Forward("natural_teacher", "adversarial")
    attack = Attack("student", LABELS, start="uniform", clamped=True, batchnorm="train")
    return Method(
        trained=("student",),
        attacks={"adversarial": attack},
        forwards=(adversarial,),
        terms={
            "student_ce": CrossEntropy(adversarial, loss.labels),
            "student_kl_natural": Divergence(adversarial, natural, loss.natural, loss.temperature),
            "student_kl_teacher": Divergence(adversarial, robust, loss.robust, loss.temperature),
        },
    )
