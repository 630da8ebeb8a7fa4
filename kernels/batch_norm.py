"""BatchNorm in train mode, with the sum and the ReLU behind it, for a batch of equal parts.

Each part is normalised by its own statistics. The functions know nothing of autograd: `backward` computes
what the chain rule gives for `forward`.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from fastpeer.kernels.sign_bits import packed, unpacked


class Running(NamedTuple):
    """Running statistics, which `forward` moves: r ← (1 − momentum)·r + momentum·(a part's own).

    Attributes:
        mean: (C,).
        variance: (C,), moved by unbiased variances.
        momentum: between 0 and 1.
        updates: numbers of the parts in the order in which they move the statistics; a part that is listed
            twice moves them twice.
    """

    mean: Tensor
    variance: Tensor
    momentum: float
    updates: tuple[int, ...]


class Normalised(NamedTuple):
    """The result of `forward`.

    Attributes:
        y: like x.
        mean: of each part's channels, (parts, C), float64 for float64, else float32.
        variance: likewise, biased.
        rstd: likewise, 1/√(variance + ε).
    """

    y: Tensor
    mean: Tensor
    variance: Tensor
    rstd: Tensor


class Gradients(NamedTuple):
    """The result of `backward`: gradients at the arguments of `forward`.

    Attributes:
        x: like x.
        weight: (C,), in the dtype of the statistics.
        bias: (C,), in the dtype of the statistics.
        residual: like x; none without a residual.
    """

    x: Tensor
    weight: Tensor
    bias: Tensor
    residual: Tensor | None


@dataclass(frozen=True)
class BatchNorm:
    """One implementation of the formula.

    Attributes:
        fits: tells whether it takes x in so many parts.
        forward: see `forward`.
        backward: see `backward`.
        keeps_signs: what a ReLU behind a sum lets through is kept as bits for the way back.
    """

    fits: Callable[[Tensor, int], bool]
    forward: Callable[..., Normalised]
    backward: Callable[..., Gradients]
    keeps_signs: bool = False


def fits(x: Tensor, parts: int) -> bool:
    """Tell whether x (B, C, H, W) has `parts` equal parts of more than one value in a channel."""
    return x.dim() == 4 and x.shape[0] % parts == 0 and x.numel() > parts * x.shape[1]


def forward(
    x: Tensor, parts: int, weight: Tensor, bias: Tensor, eps: float,
    residual: Tensor | None = None, relu: bool = False, running: Running | None = None, *,
    signs: Tensor | None = None,
) -> Normalised:  # fmt: skip
    """Compute [relu]((x − mean)·rstd·weight + bias [+ residual]), and move the running statistics.

    Computed in float64 for float64, else in float32, and rounded once.

    Args:
        x: (B, C, H, W), any floating dtype; B a multiple of `parts`.
        parts: number of equal parts of the batch.
        weight: (C,), any floating dtype.
        bias: (C,), any floating dtype.
        eps: is added to variances.
        residual: like x, or none.
        relu: let nothing below zero through; NaN stays.
        running: statistics to move in place, or none.
        signs: uint8 (B, H, W, C / 8), overwritten with what ReLU lets through, `packed`: all but y <= 0.
    """
    exact = _exact(x)
    by_part = _by_part(x, parts)
    variance, mean = torch.var_mean(by_part, (1, 3, 4), correction=0)
    rstd = (variance + eps).rsqrt()
    y = (by_part - _wide(mean)) * _wide(rstd * weight.to(exact)) + bias.to(exact).view(1, 1, -1, 1, 1)
    y = y.reshape(x.shape)
    if residual is not None:
        y = y + residual.to(exact)
    y = torch.relu(y) if relu else y
    if running is not None:
        _move(running, mean, variance, x.numel() // x.shape[1] // parts)
    rounded = torch.empty_like(x, memory_format=_layout(x)).copy_(y)
    if signs is not None:
        signs.copy_(packed(~(rounded <= 0)))
    return Normalised(rounded, mean, variance, rstd)


def backward(
    gradient: Tensor, x: Tensor, y: Tensor | None, mean: Tensor, rstd: Tensor, weight: Tensor, bias: Tensor,
    parts: int, relu: bool, residual: bool,
) -> Gradients:  # fmt: skip
    """Return the gradients at x, weight, bias and residual for the one at y.

    Args:
        gradient: at y, (B, C, H, W).
        x: as in `forward`.
        y: the result of `forward`, or its signs; needed, and read, only with ReLU and residual. Without a
            residual, what ReLU let through is computed again from x.
        mean: from `forward`, (parts, C).
        rstd: from `forward`, (parts, C).
        weight: (C,).
        bias: (C,).
        parts: as in `forward`.
        relu: as in `forward`.
        residual: whether there was one.
    """
    exact = _exact(x)
    normalised = (_by_part(x, parts) - _wide(mean)) * _wide(rstd)
    at_sum = _by_part(gradient.to(exact), parts)
    if relu:
        if residual:
            assert y is not None
            stopped = (~unpacked(y) if y.dtype == torch.uint8 else y <= 0).view_as(at_sum)
        else:
            stopped = normalised * weight.to(exact).view(1, 1, -1, 1, 1) + bias.view(1, 1, -1, 1, 1) <= 0
        at_sum = at_sum.masked_fill(stopped, 0.0)
    count = x.numel() // x.shape[1] // parts
    sums, products = at_sum.sum((1, 3, 4)), (at_sum * normalised).sum((1, 3, 4))
    at_x = (at_sum - _wide(sums / count) - normalised * _wide(products / count)) * _wide(rstd * weight)
    layout = _layout(x)
    return Gradients(
        at_x.view(x.shape).to(x.dtype).contiguous(memory_format=layout),
        products.sum(0),
        sums.sum(0),
        at_sum.view(x.shape).to(x.dtype).contiguous(memory_format=layout) if residual else None,
    )


def _exact(x: Tensor) -> torch.dtype:
    return torch.promote_types(x.dtype, torch.float32)


def _by_part(x: Tensor, parts: int) -> Tensor:
    """Return (B, C, H, W) as (parts, B/parts, C, H, W) in the dtype to compute in."""
    return x.to(_exact(x)).reshape(parts, x.shape[0] // parts, *x.shape[1:])


def _wide(statistics: Tensor) -> Tensor:
    """Return (parts, C) as (parts, 1, C, 1, 1)."""
    return statistics[:, None, :, None, None]


def _layout(x: Tensor) -> torch.memory_format:
    last = x.is_contiguous(memory_format=torch.channels_last)
    return torch.channels_last if last else torch.contiguous_format


def _move(running: Running, mean: Tensor, variance: Tensor, count: int) -> None:
    unbiased = variance * (count / (count - 1))
    for part in running.updates:
        running.mean.mul_(1 - running.momentum).add_(mean[part], alpha=running.momentum)
        running.variance.mul_(1 - running.momentum).add_(unbiased[part], alpha=running.momentum)


KERNELS = BatchNorm(fits, forward, backward)
