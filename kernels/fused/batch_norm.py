"""BatchNorm in train mode, with the sum and the ReLU behind it: two launches forward, two backward.

The first of each two sums up: programs by rows and channels write what they found to a buffer. Each program
of the second puts together, in a fixed order, what was found of its channels, and then writes its rows.
"""

from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from fastpeer.kernels.batch_norm import BatchNorm, Gradients, Normalised, Running
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
    residual: Tensor | None = None, relu: bool = False, running: Running | None = None,
) -> Normalised:  # fmt: skip
    """Compute [relu]((x − mean)·rstd·weight + bias [+ residual]), and move the running statistics.

    Arguments and result are those of `fastpeer.kernels.batch_norm.forward`, within limits: x is float32,
    bfloat16 or float16, channels-last, C a multiple of 8. A residual of another memory format is converted
    first, which is a launch more.

    Raises:
        KernelRefusal: a shape, dtype, memory format or device does not fit.
    """
    _check(x, parts, weight, bias, residual)
    work = _work(x, parts)
    y = torch.empty_like(x)
    partial = x.new_empty(parts, 2, work.splits, work.channels, dtype=torch.float32)
    mean, variance, rstd = (x.new_empty(parts, work.channels, dtype=torch.float32) for _ in range(3))
    weight, bias = weight.detach().contiguous(), bias.detach().contiguous()
    with torch.cuda.device_of(x):
        _statistics[work.grid](
            x, partial, work.rows, work.chunk, work.splits, work.channels,
            ROWS=work.tile, COLUMNS=_COLUMNS, num_warps=work.warps, enable_fp_fusion=True,
        )  # fmt: skip
        _normalise[work.grid](
            x, x if residual is None else _channels_last(residual), y, partial, weight, bias,
            mean, variance, rstd,
            mean if running is None else running.mean,
            variance if running is None else running.variance,
            0.0 if running is None else float(running.momentum),
            float(eps), work.rows, work.chunk, work.splits, work.channels,
            # Not needed but for the running statistics, of which a single value has none.
            work.rows / (work.rows - 1),
            UPDATES=() if running is None else tuple(running.updates),
            SUMS=residual is not None, RECTIFIES=relu, SPLITS=work.padded_splits,
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
    _check(x, parts, weight, bias, y)
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
    stops = 0 if not relu else 2 if residual else 1
    with torch.cuda.device_of(x):
        _gradient_sums[work.grid](
            gradient, x, read, mean, rstd, weight, bias, partial,
            work.rows, work.chunk, work.splits, work.channels,
            # Fewer threads with more registers: the loads of several rows are on their way at once.
            STOPS=stops, ROWS=work.tile // 2, COLUMNS=_COLUMNS, num_warps=max(1, work.warps // 2),
            enable_fp_fusion=True,
        )  # fmt: skip
        _input_gradient[work.grid](
            gradient, x, read, mean, rstd, weight, bias, partial,
            at_x, at_x if at_residual is None else at_residual, at_weight, at_bias,
            work.rows, work.chunk, work.splits, work.channels,
            STOPS=stops, PARTS=parts, SPLITS=work.padded_splits,
            ROWS=work.tile, COLUMNS=_COLUMNS, num_warps=work.warps, enable_fp_fusion=True,
        )  # fmt: skip
    return Gradients(at_x, at_weight, at_bias, at_residual if relu or not residual else gradient)


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


@triton.jit
def _inside(left, known):
    """Return where rows, of which so many are left, and channels are the program's: (ROWS, COLUMNS)."""
    return (left > 0)[:, None] & known[None, :]


@triton.jit
def _measured(value, first, present, sums, squares):
    """Return sums of the differences from the first values, and of their squares, with one more of each."""
    off = tl.where(present, value.to(tl.float32) - first, 0.0)
    return sums + off, squares + off * off


@triton.jit
def _statistics(
    x,  # (parts · rows, channels)
    partial,  # (parts, 2, splits, channels): mean less the part's first row, and squares about the mean
    rows,
    chunk,
    splits,
    channels,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
):
    split = tl.program_id(0)
    part = tl.program_id(1)
    channel = tl.program_id(2) * COLUMNS + tl.arange(0, COLUMNS)
    known = channel < channels
    slot = tl.arange(0, ROWS)
    count = tl.minimum(chunk, rows - split * chunk)
    x += part * rows * channels
    origin = tl.load(x + channel, mask=known, other=0.0).to(tl.float32)
    place = (split * chunk + slot)[:, None] * channels + channel[None, :]
    present = (slot < count)[:, None] & known[None, :]
    # Each slot measures from its own first value: one of a few values is never so far from their mean that
    # the difference of the sums below would lose much, whatever the values are.
    first = tl.load(x + place, mask=present, other=0.0).to(tl.float32)
    sums = tl.zeros([ROWS, COLUMNS], tl.float32)
    squares = tl.zeros([ROWS, COLUMNS], tl.float32)
    step = ROWS * channels
    for done in range(ROWS, count, 4 * ROWS):
        # All loads before the first use, so that they are on their way at once.
        left = count - done - slot
        one = tl.load(x + place + step, mask=_inside(left, known), other=0.0)
        two = tl.load(x + place + 2 * step, mask=_inside(left - ROWS, known), other=0.0)
        three = tl.load(x + place + 3 * step, mask=_inside(left - 2 * ROWS, known), other=0.0)
        four = tl.load(x + place + 4 * step, mask=_inside(left - 3 * ROWS, known), other=0.0)
        sums, squares = _measured(one, first, _inside(left, known), sums, squares)
        sums, squares = _measured(two, first, _inside(left - ROWS, known), sums, squares)
        sums, squares = _measured(three, first, _inside(left - 2 * ROWS, known), sums, squares)
        sums, squares = _measured(four, first, _inside(left - 3 * ROWS, known), sums, squares)
        place += 4 * step
    values = ((count - slot + ROWS - 1) // ROWS).to(tl.float32)[:, None]
    share = 1 / tl.maximum(values, 1.0)
    means = tl.where(values > 0, (first - origin[None, :]) + sums * share, 0.0)
    mean = tl.sum(values * means, 0) / count
    off = means - mean[None, :]
    around = tl.sum(tl.maximum(squares - sums * sums * share, 0.0) + values * off * off, 0)
    out = partial + (part * 2 * splits + split) * channels + channel
    tl.store(out, mean, mask=known)
    tl.store(out + splits * channels, around, mask=known)


@triton.jit
def _put_together(x, partial, part, channel, rows, chunk, splits, channels, SPLITS: tl.constexpr):
    """Return mean and biased variance (COLUMNS,) of a part's channels."""
    known = channel < channels
    split = tl.arange(0, SPLITS)
    values = tl.minimum(tl.maximum(rows - split * chunk, 0), chunk).to(tl.float32)[:, None]
    place = (part * 2 * splits + split)[:, None] * channels + channel[None, :]
    present = (split < splits)[:, None] & known[None, :]
    means = tl.load(partial + place, mask=present, other=0.0)
    around = tl.load(partial + splits * channels + place, mask=present, other=0.0)
    origin = tl.load(x + part * rows * channels + channel, mask=known, other=0.0).to(tl.float32)
    mean = tl.sum(values * means, 0) / rows
    off = means - mean[None, :]
    return origin + mean, tl.sum(around + values * off * off, 0) / rows


@triton.jit
def _normalise(
    x,  # (parts · rows, channels)
    residual,  # like x; only where SUMS
    y,  # like x
    partial,  # from _statistics
    weight,  # (channels,)
    bias,  # (channels,)
    mean_out,  # (parts, channels), and the next two
    variance_out,
    rstd_out,
    running_mean,  # (channels,), and the next; only where there are UPDATES
    running_variance,
    momentum,
    eps,
    rows,
    chunk,
    splits,
    channels,
    unbiased,  # variance for a biased one
    UPDATES: tl.constexpr,
    SUMS: tl.constexpr,
    RECTIFIES: tl.constexpr,
    SPLITS: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
):
    split = tl.program_id(0)
    part = tl.program_id(1)
    channel = tl.program_id(2) * COLUMNS + tl.arange(0, COLUMNS)
    known = channel < channels
    mean, variance = _put_together(x, partial, part, channel, rows, chunk, splits, channels, SPLITS)
    rstd = tl.div_rn(1.0, tl.sqrt_rn(variance + eps))
    if split == 0:
        kept = part * channels + channel
        tl.store(mean_out + kept, mean, mask=known)
        tl.store(variance_out + kept, variance, mask=known)
        tl.store(rstd_out + kept, rstd, mask=known)
        # Nested: whether there are updates is known when this is compiled, the part is not.
        if len(UPDATES) > 0:  # noqa: SIM102
            if part == 0:
                # One program moves the running statistics of its channels, part by part.
                of_mean = tl.load(running_mean + channel, mask=known, other=0.0).to(tl.float32)
                of_variance = tl.load(running_variance + channel, mask=known, other=0.0).to(tl.float32)
                for number in tl.static_range(len(UPDATES)):
                    own_mean, own_variance = _put_together(
                        x, partial, UPDATES[number], channel, rows, chunk, splits, channels, SPLITS
                    )
                    of_mean = (1 - momentum) * of_mean + momentum * own_mean
                    of_variance = (1 - momentum) * of_variance + momentum * (own_variance * unbiased)
                tl.store(running_mean + channel, of_mean.to(running_mean.dtype.element_ty), mask=known)
                to = running_variance.dtype.element_ty
                tl.store(running_variance + channel, of_variance.to(to), mask=known)
    scale = rstd * tl.load(weight + channel, mask=known, other=0.0).to(tl.float32)
    shift = tl.load(bias + channel, mask=known, other=0.0).to(tl.float32)
    slot = tl.arange(0, ROWS)
    count = tl.minimum(chunk, rows - split * chunk)
    place = (part * rows + split * chunk + slot)[:, None] * channels + channel[None, :]
    for done in range(0, count, ROWS):
        present = (slot < count - done)[:, None] & known[None, :]
        value = tl.load(x + place, mask=present, other=0.0).to(tl.float32)
        value = _scaled(value - mean[None, :], scale, shift)
        if SUMS:
            value += tl.load(residual + place, mask=present, other=0.0).to(tl.float32)
        if RECTIFIES:
            value = tl.maximum(value, 0.0, propagate_nan=tl.PropagateNan.ALL)
        tl.store(y + place, value.to(y.dtype.element_ty), mask=present)
        place += ROWS * channels


@triton.jit
def _scaled(off, scale, shift):
    """Return values before sum and ReLU, from those about the mean: of the same bits forward and backward."""
    scale = tl.broadcast_to(scale[None, :], off.shape)
    return tl.fma(off, scale, tl.broadcast_to(shift[None, :], off.shape))


@triton.jit
def _let_through(gradient, off, y, place, present, scale, shift, STOPS: tl.constexpr):
    """Return the gradient before ReLU; STOPS: 0 there is none, 1 found from x, 2 from y."""
    if STOPS == 1:
        gradient = tl.where(_scaled(off, scale, shift) <= 0, 0.0, gradient)
    if STOPS == 2:
        gradient = tl.where(tl.load(y + place, mask=present, other=0.0).to(tl.float32) <= 0, 0.0, gradient)
    return gradient


@triton.jit
def _gradient_sums(
    gradient,  # at y, (parts · rows, channels)
    x,  # like gradient
    y,  # like gradient; only where STOPS == 2
    mean,  # (parts, channels)
    rstd,  # (parts, channels)
    weight,  # (channels,)
    bias,  # (channels,)
    partial,  # (parts, 2, splits, channels): sums of the gradient, and of it times normalised x
    rows,
    chunk,
    splits,
    channels,
    STOPS: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
):
    split = tl.program_id(0)
    part = tl.program_id(1)
    channel = tl.program_id(2) * COLUMNS + tl.arange(0, COLUMNS)
    known = channel < channels
    own_mean = tl.load(mean + part * channels + channel, mask=known, other=0.0)
    own_rstd = tl.load(rstd + part * channels + channel, mask=known, other=0.0)
    scale = own_rstd * tl.load(weight + channel, mask=known, other=0.0).to(tl.float32)
    shift = tl.load(bias + channel, mask=known, other=0.0).to(tl.float32)
    slot = tl.arange(0, ROWS)
    count = tl.minimum(chunk, rows - split * chunk)
    place = (part * rows + split * chunk + slot)[:, None] * channels + channel[None, :]
    sums = tl.zeros([ROWS, COLUMNS], tl.float32)
    products = tl.zeros([ROWS, COLUMNS], tl.float32)
    for done in tl.range(0, count, ROWS, loop_unroll_factor=4):
        present = (slot < count - done)[:, None] & known[None, :]
        off = tl.load(x + place, mask=present, other=0.0).to(tl.float32) - own_mean[None, :]
        at = tl.load(gradient + place, mask=present, other=0.0).to(tl.float32)
        at = _let_through(at, off, y, place, present, scale, shift, STOPS)
        sums += at
        products += at * off
        place += ROWS * channels
    out = partial + (part * 2 * splits + split) * channels + channel
    tl.store(out, tl.sum(sums, 0), mask=known)
    tl.store(out + splits * channels, tl.sum(products, 0) * own_rstd, mask=known)


@triton.jit
def _summed(partial, part, which, channel, splits, channels, SPLITS: tl.constexpr):
    """Return one of the sums (COLUMNS,) over a part's rows."""
    split = tl.arange(0, SPLITS)
    place = ((part * 2 + which) * splits + split)[:, None] * channels + channel[None, :]
    present = (split < splits)[:, None] & (channel < channels)[None, :]
    return tl.sum(tl.load(partial + place, mask=present, other=0.0), 0)


@triton.jit
def _input_gradient(
    gradient,  # at y, (parts · rows, channels)
    x,  # like gradient
    y,  # like gradient; only where STOPS == 2
    mean,  # (parts, channels)
    rstd,  # (parts, channels)
    weight,  # (channels,)
    bias,  # (channels,)
    partial,  # from _gradient_sums
    at_x,  # like x
    at_residual,  # like x; only where STOPS == 2
    at_weight,  # (channels,)
    at_bias,  # (channels,)
    rows,
    chunk,
    splits,
    channels,
    STOPS: tl.constexpr,
    PARTS: tl.constexpr,
    SPLITS: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
):
    split = tl.program_id(0)
    part = tl.program_id(1)
    channel = tl.program_id(2) * COLUMNS + tl.arange(0, COLUMNS)
    known = channel < channels
    if split + part == 0:
        of_weight = tl.zeros([COLUMNS], tl.float32)
        of_bias = tl.zeros([COLUMNS], tl.float32)
        for number in tl.static_range(PARTS):
            of_bias += _summed(partial, number, 0, channel, splits, channels, SPLITS)
            of_weight += _summed(partial, number, 1, channel, splits, channels, SPLITS)
        tl.store(at_weight + channel, of_weight, mask=known)
        tl.store(at_bias + channel, of_bias, mask=known)
    own_mean = tl.load(mean + part * channels + channel, mask=known, other=0.0)
    own_rstd = tl.load(rstd + part * channels + channel, mask=known, other=0.0)
    scale = own_rstd * tl.load(weight + channel, mask=known, other=0.0).to(tl.float32)
    shift = tl.load(bias + channel, mask=known, other=0.0).to(tl.float32)
    average = _summed(partial, part, 0, channel, splits, channels, SPLITS) / rows
    slope = _summed(partial, part, 1, channel, splits, channels, SPLITS) / rows * own_rstd
    slot = tl.arange(0, ROWS)
    count = tl.minimum(chunk, rows - split * chunk)
    place = (part * rows + split * chunk + slot)[:, None] * channels + channel[None, :]
    for done in range(0, count, ROWS):
        present = (slot < count - done)[:, None] & known[None, :]
        off = tl.load(x + place, mask=present, other=0.0).to(tl.float32) - own_mean[None, :]
        at = tl.load(gradient + place, mask=present, other=0.0).to(tl.float32)
        at = _let_through(at, off, y, place, present, scale, shift, STOPS)
        if STOPS == 2:
            tl.store(at_residual + place, at.to(at_residual.dtype.element_ty), mask=present)
        change = at - average[None, :] - off * slope[None, :]
        tl.store(at_x + place, (change * scale[None, :]).to(at_x.dtype.element_ty), mask=present)
        place += ROWS * channels
