"""PGD-AT (Madry et al., ICLR 2018): H(y, S(x')), x' maximises the same.

As the released PeerAiD code trains this baseline: S is in eval mode during the attack. Madry et al. and
Rice et al. (2020) attack in train mode (`attack.batchnorm = "train"`) and clamp the start
(`attack.clamp_start = "on"`). The code of the latter also runs S on x' once more after the attack, and on x
after the update, which only BatchNorm's running statistics see (`loss.extra_forwards`).
"""

from dataclasses import dataclass

from fastpeer.methods.table import LABELS, Attack, CrossEntropy, Forward, LossSettings, Method


@dataclass(frozen=True, kw_only=True)
class Loss(LossSettings):
    """What PGD-AT runs beside its one forward."""

    extra_forwards: bool = False
    """Two more forwards a step for BatchNorm's statistics alone, as Rice et al. have them: on adversarial
    images before the update, on clean ones after it."""


def table(loss: Loss) -> Method:
    """Fill in the table of PGD-AT."""
    adversarial, clean = Forward("student", "adversarial"), Forward("student", "clean")
    return Method(
        trained=("student",),
        attacks={"adversarial": Attack("student", LABELS, start="uniform")},
        forwards=(adversarial, adversarial) if loss.extra_forwards else (adversarial,),
        afterwards=(clean,) if loss.extra_forwards else (),
        terms={"student_ce": CrossEntropy(adversarial, 1.0)},
    )
