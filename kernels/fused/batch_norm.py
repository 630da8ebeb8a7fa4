"""BatchNorm in train mode, with the sum and the ReLU behind it: two launches forward, two backward.

The first of each two sums up: programs by rows and channels write what they found to a buffer. Each program
of the second puts together, in a fixed order, what was found of its channels, and then writes its rows.
"""

from typing import NamedTuple

import torch
import triton
from torch import Tensor

from fastpeer.kernels.batch_norm import BatchNorm, Gradients, Normalised, Running
from fastpeer.kernels.fused.norm_kernels import gradient_sums, input_gradient, normalise, statistics
from fastpeer.kernels.fused.sign_bits import check_signs
from fastpeer.kernels.refusal import require

_NAME = "fused BatchNorm"
_DTYPES = (torch.float32, torch.bfloat16, torch.float16)
_COLUMNS, _ROWS = 32, 128
"""Channels of a program, 64 bytes of bfloat16; and rows that it takes at once. Few channels make for few
programs of which each later one has to read the sums."""
_PROGRAMS = 256
"""Two for each multiprocessor of an H100 or H200, which hold as many of 16 warps."""
_PER_THREAD = 8
"""Values of a tile: 16 bytes of bfloat16, and so few registers that two programs fit."""
_MOST = (1 << 31) - _ROWS * 1024 * 8
"""The most values that can be numbered in 32 bits, with those of rows behind the last."""


def fits(x: Tensor, parts: int) -> bool:
    """Tell whether `forward` takes x in so many parts."""
    return (
        x.dim() == 4
        and x.dtype in _DTYPES
        and x.shape[0] % parts == 0
        and x.shape[1] % 8 == 0
        and parts * x.shape[1] < x.numel() <= _MOST
        and x.is_contiguous(memory_format=torch.channels_last)
    )


def forward(
    x: Tensor, parts: int, weight: Tensor, bias: Tensor, eps: float,
    residual: Tensor | None = None, relu: bool = False, running: Running | None = None, *,
    signs: Tensor | None = None,
) -> Normalised:  # fmt: skip
    """Compute [relu]((x − mean)·rstd·weight + bias [+ residual]), and move the running statistics.

    Arguments and result are those of `fastpeer.kernels.batch_norm.forward`, within limits: x is float32,
    bfloat16 or float16, channels-last, C a multiple of 8. A residual of another memory format is converted
    first, which is a launch more.

    Raises:
        KernelRefusal: a shape, dtype, memory format or device does not fit.
    """
    _check(x, parts, weight, bias, residual)
    check_signs(signs, x.shape, x.device, _NAME)
    work = _work(x, parts)
    y = torch.empty_like(x)
    partial = x.new_empty(parts, 2, work.splits, work.channels, dtype=torch.float32)
    mean, variance, rstd = (x.new_empty(parts, work.channels, dtype=torch.float32) for _ in range(3))
    weight, bias = weight.detach().contiguous(), bias.detach().contiguous()
    with torch.cuda.device_of(x):
        statistics[work.grid](
            x, partial, work.rows, work.chunk, work.splits, work.channels,
            ROWS=work.tile, COLUMNS=_COLUMNS, num_warps=work.warps, enable_fp_fusion=True,
        )  # fmt: skip
        normalise[work.grid](
            x, x if residual is None else _channels_last(residual), y, partial, weight, bias,
            mean, variance, rstd,
            mean if running is None else running.mean,
            variance if running is None else running.variance,
            0.0 if running is None else float(running.momentum),
            float(eps), work.rows, work.chunk, work.splits, work.channels,
            # Not needed but for the running statistics, of which a single value has none.
            work.rows / (work.rows - 1), signs,
            UPDATES=() if running is None else tuple(running.updates),
            SUMS=residual is not None, RECTIFIES=relu, SIGNS=signs is not None, SPLITS=work.padded_splits,
            # Loads do not wait for sums here, but stores are not overtaken: more of them at once.
            ROWS=work.tile * (1 if work.chunk <= work.tile else 2), COLUMNS=_COLUMNS,
            num_warps=work.warps, enable_fp_fusion=True,
        )  # fmt: skip
    return Normalised(y, mean, variance, rstd)


def backward(
    gradient: Tensor, x: Tensor, y: Tensor | None, mean: Tensor, rstd: Tensor, weight: Tensor, bias: Tensor,
    parts: int, relu: bool, residual: bool,
) -> Gradients:  # fmt: skip
    """Return the gradients at x, weight, bias and residual for the one at y.

    Arguments and result are those of `fastpeer.kernels.batch_norm.backward`, within the limits of `forward`.
    A gradient of another memory format is converted first. Without ReLU, the residual's is `gradient` itself.

    Raises:
        KernelRefusal: a shape, dtype, memory format or device does not fit.
    """
    bits = y if y is not None and y.dtype == torch.uint8 else None
    _check(x, parts, weight, bias, y if bits is None else None)
    check_signs(bits, x.shape, x.device, _NAME)
    require(
        gradient.shape == x.shape, _NAME, f"gradient must be {tuple(x.shape)}, got {tuple(gradient.shape)}"
    )
    require(
        mean.shape == rstd.shape == (parts, x.shape[1]), _NAME,
        f"mean and rstd must be ({parts}, {x.shape[1]}), got {tuple(mean.shape)} and {tuple(rstd.shape)}",
    )  # fmt: skip
    require(y is not None or not (relu and residual), _NAME, "with ReLU and residual, y must be given")
    work = _work(x, parts)
    gradient = _channels_last(gradient)
    at_x = torch.empty_like(x)
    at_residual = torch.empty_like(x) if relu and residual else None
    partial = x.new_empty(parts, 2, work.splits, work.channels, dtype=torch.float32)
    at_weight, at_bias = (x.new_empty(work.channels, dtype=torch.float32) for _ in range(2))
    weight, bias = weight.detach().contiguous(), bias.detach().contiguous()
    read = y if y is not None and relu and residual else x
    stops = _how_it_stops(relu, residual, bits)
    with torch.cuda.device_of(x):
        gradient_sums[work.grid](
            gradient, x, read, mean, rstd, weight, bias, partial,
            work.rows, work.chunk, work.splits, work.channels,
            # Fewer threads with more registers: the loads of several rows are on their way at once.
            STOPS=stops, ROWS=work.tile // 2, COLUMNS=_COLUMNS, num_warps=max(1, work.warps // 2),
            enable_fp_fusion=True,
        )  # fmt: skip
        input_gradient[work.grid](
            gradient, x, read, mean, rstd, weight, bias, partial,
            at_x, at_x if at_residual is None else at_residual, at_weight, at_bias,
            work.rows, work.chunk, work.splits, work.channels,
            STOPS=stops, PARTS=parts, SPLITS=work.padded_splits,
            ROWS=work.tile, COLUMNS=_COLUMNS, num_warps=work.warps, enable_fp_fusion=True,
        )  # fmt: skip
    return Gradients(at_x, at_weight, at_bias, at_residual if relu or not residual else gradient)


def _how_it_stops(relu: bool, residual: bool, bits: Tensor | None) -> int:
    """Return the kernels' STOPS: how they find what ReLU let through."""
    if not relu:
        return 0
    return 1 if not residual else 2 if bits is None else 3


KERNELS = BatchNorm(fits, forward, backward)


class _Work(NamedTuple):
    """How a tensor is divided among programs.

    Attributes:
        grid: programs by rows of a part, parts, and channels.
        rows: of a part.
        chunk: rows of a program.
        splits: programs among which a part's rows are divided.
        channels: of the tensor.
        tile: rows that a program takes at once.
        warps: of a program.
    """

    grid: tuple[int, int, int]
    rows: int
    chunk: int
    splits: int
    channels: int
    tile: int
    warps: int

    @property
    def padded_splits(self) -> int:
        """The next power of two."""
        return int(triton.next_power_of_2(self.splits))


def _work(x: Tensor, parts: int) -> _Work:
    channels = x.shape[1]
    rows = x.numel() // channels // parts
    columns = triton.cdiv(channels, _COLUMNS)
    # Of less than 32 rows each, programs would be many for little.
    wanted = max(1, min(_PROGRAMS // (parts * columns), triton.cdiv(rows, 32)))
    chunk = triton.cdiv(rows, wanted)
    splits = triton.cdiv(rows, chunk)
    tile = min(_ROWS, max(16, triton.next_power_of_2(chunk)))
    warps = max(1, tile * _COLUMNS // (32 * _PER_THREAD))
    return _Work((splits, parts, columns), rows, chunk, splits, channels, tile, warps)


def _channels_last(tensor: Tensor) -> Tensor:
    return tensor.detach().contiguous(memory_format=torch.channels_last)


def _check(x: Tensor, parts: int, weight: Tensor, bias: Tensor, other: Tensor | None) -> None:
    require(
        fits(x, parts), _NAME,
        f"x must be channels-last float32, bfloat16 or float16 (B, C, H, W) of {parts} equal parts, C a "
        f"multiple of 8, with 2 to {_MOST} values, got {x.dtype} {tuple(x.shape)} with strides {x.stride()}",
    )  # fmt: skip
    given = [x, weight, bias] if other is None else [x, weight, bias, other]
    described = ", ".join(f"{tensor.dtype} {tuple(tensor.shape)}" for tensor in given)
    matches = weight.shape == bias.shape == x.shape[1:2] and (other is None or other.shape == x.shape)
    require(
        matches and all(tensor.is_floating_point() for tensor in given), _NAME,
        f"x, weight, bias and residual must be floating (B, C, H, W), (C,), (C,) and like x, got {described}",
    )  # fmt: skip
    devices = {tensor.device for tensor in given}
    require(len(devices) == 1, _NAME, f"all tensors must be on one device, got {sorted(map(str, devices))}")
