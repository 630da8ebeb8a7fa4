"""Natural training: H(y, S(x)), and no attack. What robustness is measured against."""

from dataclasses import dataclass

from fastpeer.methods.table import CrossEntropy, Forward, LossSettings, Method


@dataclass(frozen=True, kw_only=True)
class Loss(LossSettings):
    """Natural training has no settings of its own."""


def table(loss: Loss) -> Method:
    """Fill in the table of natural training."""
    clean = Forward("student", "clean")
    return Method(trained=("student",), forwards=(clean,), terms={"student_ce": CrossEntropy(clean, 1.0)})
