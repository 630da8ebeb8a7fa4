"""The vocabulary of a method's table: who learns, who is attacked, what is run, what is minimised."""

from fastpeer.kernels.reduction import Reduction
from fastpeer.methods.table.attacks import LABELS, Attack, BatchNormMode, Noise
from fastpeer.methods.table.forwards import Forward, Network
from fastpeer.methods.table.method import Later, LossSettings, Method
from fastpeer.methods.table.terms import (
    Balance,
    Confidence,
    CrossEntropy,
    Divergence,
    InputGradientDistance,
    LogitDistance,
    Term,
)

__all__ = [
    "LABELS",
    "Attack",
    "Balance",
    "BatchNormMode",
    "Confidence",
    "CrossEntropy",
    "Divergence",
    "Forward",
    "InputGradientDistance",
    "Later",
    "LogitDistance",
    "LossSettings",
    "Method",
    "Network",
    "Noise",
    "Reduction",
    "Term",
]
