"""The kernels of train-mode BatchNorm: sums of rows, and what is made of them; backward likewise."""

import triton
import triton.language as tl

from fastpeer.kernels.fused.sign_bits import packed, unpacked


@triton.jit
def _program(channels, COLUMNS: tl.constexpr):
    """Return the program's number among a part's, its part, its channels, and which of these there are."""
    split = tl.program_id(0)
    part = tl.program_id(1)
    channel = tl.program_id(2) * COLUMNS + tl.arange(0, COLUMNS)
    return split, part, channel, channel < channels


@triton.jit
def _rows(split, part, channel, rows, chunk, channels, ROWS: tl.constexpr):
    """Return a tile's rows, how many rows are the program's, and where the first tile is in memory."""
    slot = tl.arange(0, ROWS)
    count = tl.minimum(chunk, rows - split * chunk)
    place = (part * rows + split * chunk + slot)[:, None] * channels + channel[None, :]
    return slot, count, place


@triton.jit
def _bits(split, part, rows, chunk, done, channels, ROWS: tl.constexpr, COLUMNS: tl.constexpr):
    """Return where the bits of a tile are in memory, and which are the program's: (ROWS, COLUMNS / 8)."""
    slot = done + tl.arange(0, ROWS)
    byte = tl.program_id(2) * (COLUMNS // 8) + tl.arange(0, COLUMNS // 8)
    place = (part * rows + split * chunk + slot)[:, None] * (channels // 8) + byte[None, :]
    count = tl.minimum(chunk, rows - split * chunk)
    return place, (slot < count)[:, None] & (byte < channels // 8)[None, :]


@triton.jit
def _scale_and_shift(rstd, weight, bias, channel, known):
    """Return what values about the mean are multiplied by, and what is added then: (COLUMNS,) each."""
    scale = rstd * tl.load(weight + channel, mask=known, other=0.0).to(tl.float32)
    return scale, tl.load(bias + channel, mask=known, other=0.0).to(tl.float32)


@triton.jit
def _inside(left, known):
    """Return where rows, of which so many are left, and channels are the program's: (ROWS, COLUMNS)."""
    return (left > 0)[:, None] & known[None, :]


@triton.jit
def _origin(x, part, channel, known, rows, channels):
    """Return a number for each channel that is not far from its mean: the mean of a few rows of the part."""
    row = tl.arange(0, 16) * (rows // 16)
    place = (part * rows + row)[:, None] * channels + channel[None, :]
    return tl.sum(tl.load(x + place, mask=known[None, :], other=0.0).to(tl.float32), 0) / 16


@triton.jit
def _measured(value, first, present, sums, squares):
    """Return sums of the differences from the first values, and of their squares, with one more of each."""
    off = tl.where(present, value.to(tl.float32) - first, 0.0)
    return sums + off, squares + off * off


@triton.jit
def statistics(
    x,  # (parts · rows, channels)
    partial,  # (parts, 2, splits, channels): mean less the part's origin, and squares about the mean
    rows,
    chunk,
    splits,
    channels,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
):
    """Sum up rows: mean and squares about it, of each program."""
    split, part, channel, known = _program(channels, COLUMNS)
    slot, count, place = _rows(split, part, channel, rows, chunk, channels, ROWS)
    origin = _origin(x, part, channel, known, rows, channels)
    # Each slot measures from its own first value: one of a few values is never so far from their mean that
    # the difference of the sums below would lose much, whatever the values are.
    first = tl.load(x + place, mask=_inside(count - slot, known), other=0.0).to(tl.float32)
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
    origin = _origin(x, part, channel, known, rows, channels)
    mean = tl.sum(values * means, 0) / rows
    off = means - mean[None, :]
    return origin + mean, tl.sum(around + values * off * off, 0) / rows


@triton.jit
def normalise(
    x,  # (parts · rows, channels)
    residual,  # like x; only where SUMS
    y,  # like x
    partial,  # from statistics
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
    signs,  # (parts · rows, channels / 8), what ReLU lets through; only where SIGNS
    UPDATES: tl.constexpr,
    SUMS: tl.constexpr,
    RECTIFIES: tl.constexpr,
    SIGNS: tl.constexpr,
    SPLITS: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
):
    """Put the sums together, move the running statistics, write y."""
    split, part, channel, known = _program(channels, COLUMNS)
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
    scale, shift = _scale_and_shift(rstd, weight, bias, channel, known)
    slot, count, place = _rows(split, part, channel, rows, chunk, channels, ROWS)
    for done in range(0, count, ROWS):
        present = (slot < count - done)[:, None] & known[None, :]
        value = tl.load(x + place, mask=present, other=0.0).to(tl.float32)
        value = _scaled(value - mean[None, :], scale, shift)
        if SUMS:
            value += tl.load(residual + place, mask=present, other=0.0).to(tl.float32)
        if RECTIFIES:
            value = tl.maximum(value, 0.0, propagate_nan=tl.PropagateNan.ALL)
        rounded = value.to(y.dtype.element_ty)
        # Before y is stored: in the other order a thread takes more registers, and one program fits, not two.
        if SIGNS:
            bits, kept = _bits(split, part, rows, chunk, done, channels, ROWS, COLUMNS)
            tl.store(signs + bits, packed((rounded.to(tl.float32) <= 0) == 0), mask=kept)
        tl.store(y + place, rounded, mask=present)
        place += ROWS * channels


@triton.jit
def _scaled(off, scale, shift):
    """Return values before sum and ReLU, from those about the mean: of the same bits forward and backward."""
    scale = tl.broadcast_to(scale[None, :], off.shape)
    return tl.fma(off, scale, tl.broadcast_to(shift[None, :], off.shape))


@triton.jit
def _let_through(
    gradient, off, read, place, present, scale, shift, split, part, rows, chunk, done, channels,
    STOPS: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr,
):  # fmt: skip
    """Return the gradient before ReLU; STOPS: 0 there is none, 1 found from x, 2 from y, 3 from its signs."""
    if STOPS == 1:
        gradient = tl.where(_scaled(off, scale, shift) <= 0, 0.0, gradient)
    if STOPS == 2:
        y = tl.load(read + place, mask=present, other=0.0)
        gradient = tl.where(y.to(tl.float32) <= 0, 0.0, gradient)
    if STOPS == 3:
        bits, kept = _bits(split, part, rows, chunk, done, channels, ROWS, COLUMNS)
        gradient = tl.where(unpacked(tl.load(read + bits, mask=kept, other=0)), gradient, 0.0)
    return gradient


@triton.jit
def gradient_sums(
    gradient,  # at y, (parts · rows, channels)
    x,  # like gradient
    read,  # like gradient, y, where STOPS == 2; its signs where it is 3
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
    """Sum up rows: the gradient before ReLU, and it times normalised x."""
    split, part, channel, known = _program(channels, COLUMNS)
    own_mean = tl.load(mean + part * channels + channel, mask=known, other=0.0)
    own_rstd = tl.load(rstd + part * channels + channel, mask=known, other=0.0)
    scale, shift = _scale_and_shift(own_rstd, weight, bias, channel, known)
    slot, count, place = _rows(split, part, channel, rows, chunk, channels, ROWS)
    sums = tl.zeros([ROWS, COLUMNS], tl.float32)
    products = tl.zeros([ROWS, COLUMNS], tl.float32)
    for done in tl.range(0, count, ROWS, loop_unroll_factor=4):
        present = (slot < count - done)[:, None] & known[None, :]
        off = tl.load(x + place, mask=present, other=0.0).to(tl.float32) - own_mean[None, :]
        at = tl.load(gradient + place, mask=present, other=0.0).to(tl.float32)
        at = _let_through(
            at, off, read, place, present, scale, shift, split, part, rows, chunk, done, channels,
            STOPS, ROWS, COLUMNS,
        )  # fmt: skip
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
def input_gradient(
    gradient,  # at y, (parts · rows, channels)
    x,  # like gradient
    read,  # like gradient, y, where STOPS == 2; its signs where it is 3
    mean,  # (parts, channels)
    rstd,  # (parts, channels)
    weight,  # (channels,)
    bias,  # (channels,)
    partial,  # from gradient_sums
    at_x,  # like x
    at_residual,  # like x; only where STOPS >= 2
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
    """Put the sums together, write the gradients at x, residual, weight and bias."""
    split, part, channel, known = _program(channels, COLUMNS)
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
    scale, shift = _scale_and_shift(own_rstd, weight, bias, channel, known)
    average = _summed(partial, part, 0, channel, splits, channels, SPLITS) / rows
    slope = _summed(partial, part, 1, channel, splits, channels, SPLITS) / rows * own_rstd
    slot, count, place = _rows(split, part, channel, rows, chunk, channels, ROWS)
    for done in range(0, count, ROWS):
        present = (slot < count - done)[:, None] & known[None, :]
        off = tl.load(x + place, mask=present, other=0.0).to(tl.float32) - own_mean[None, :]
        at = tl.load(gradient + place, mask=present, other=0.0).to(tl.float32)
        at = _let_through(
            at, off, read, place, present, scale, shift, split, part, rows, chunk, done, channels,
            STOPS, ROWS, COLUMNS,
        )  # fmt: skip
        if STOPS >= 2:
            tl.store(at_residual + place, at.to(at_residual.dtype.element_ty), mask=present)
        change = at - average[None, :] - off * slope[None, :]
        tl.store(at_x + place, (change * scale[None, :]).to(at_x.dtype.element_ty), mask=present)
        place += ROWS * channels
