"""TRADES (Zhang et al., ICML 2019), as its released code computes it.

Inner:  x' maximises KL(S(x) ‖ S(x'))
Outer:  H(y, S(x)) + β·KL(S(x) ‖ S(x'))                                                     (eq. 5)

The released code runs S on x twice, for the entropy and, after x', for the target of the divergence, which
learns too (`loss.target_grad`).
"""

from dataclasses import dataclass

from fastpeer.methods.table import Attack, CrossEntropy, Divergence, Forward, LossSettings, Method


@dataclass(frozen=True, kw_only=True)
class Loss(LossSettings):
    """The weights of TRADES."""

    beta: float = 6.0
    """Divergence of the adversarial from the clean prediction: 1/λ in the paper."""
    target_grad: bool = True
    """The clean prediction, target of that divergence, receives its gradient too (as released)."""


def table(loss: Loss) -> Method:
    """Fill in the table of TRADES."""
    clean, adversarial = Forward("student", "clean"), Forward("student", "adversarial")
    return Method(
        trained=("student",),
        attacks={"adversarial": Attack("student", away_from=clean, start="gaussian")},
        forwards=(clean, adversarial, clean),
        terms={
            "student_ce": CrossEntropy(clean, 1.0),
            "student_kl_clean": Divergence(adversarial, clean, loss.beta, target_grad=loss.target_grad),
        },
    )
