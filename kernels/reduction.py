"""How a sum over the classes is averaged, without PyTorch."""

from typing import Literal

Reduction = Literal["mean", "batchmean"]
"""Divided by the batch alone (batchmean: the mathematical divergence), or by the classes on top of that
(mean: PyTorch's default, and so what much released code computes)."""
