"""PGD-AT (Madry et al., ICLR 2018): H(y, S(x')), x' maximises the same.

As the released PeerAiD code trains this baseline: S is in eval mode during the attack. Madry et al. and
Rice et al. (2020) attack in train mode (`attack.batchnorm = "train"`); the latter also clamp the start
(`attack.clamp_start = "on"`).
"""

from dataclasses import dataclass

from fastpeer.methods.table import LABELS, Attack, CrossEntropy, Forward, LossSettings, Method


@dataclass(frozen=True, kw_only=True)
class Loss(LossSettings):
    """PGD-AT has no settings of its own."""


def table(loss: Loss) -> Method:
    """Fill in the table of PGD-AT."""
    adversarial = Forward("student", "adversarial")
    return Method(
        trained=("student",),
        attacks={"adversarial": Attack("student", LABELS, start="uniform")},
        forwards=(adversarial,),
        terms={"student_ce": CrossEntropy(adversarial, 1.0)},
    )
