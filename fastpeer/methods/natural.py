"""Natural training: H(y, S(x)), and no attack. What robustness is measured against."""

from fastpeer.config import Config
from fastpeer.methods.table import CrossEntropy, Forward, Method


def natural(config: Config) -> Method:
    """Fill in the table of natural training."""
    student_clean = Forward("student", "clean")
    return Method(
        trained=("student",),
        attack=None,
        forwards=(student_clean,),
        terms={"student_ce": CrossEntropy(student_clean, 1.0)},
        reduction=config.loss.reduction,
    )
