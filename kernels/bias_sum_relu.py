"""What follows a convolution whose BatchNorm is folded into it: bias, residual and ReLU."""

import torch
from torch import Tensor


def bias_sum_relu(out: Tensor, bias: Tensor, residual: Tensor | None, relu: bool) -> Tensor:
    """Overwrite `out` with [relu](out + bias [+ residual]), and return it.

    Computed in float64 for float64, else in float32, and rounded once.

    Args:
        out: (B, C, H, W), any floating dtype.
        bias: (C,), any floating dtype.
        residual: like `out`, of any floating dtype, or none.
        relu: let nothing below zero through; NaN stays.
    """
    exact = torch.promote_types(out.dtype, torch.float32)
    found = out.to(exact) + bias.to(exact).view(1, -1, 1, 1)
    if residual is not None:
        found = found + residual.to(exact)
    return out.copy_(torch.relu(found) if relu else found)
