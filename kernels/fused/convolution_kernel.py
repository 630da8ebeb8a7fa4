"""The convolution's kernel, see `fastpeer.kernels.fused.convolution`.

A program computes a tile of pixels (IMAGES × ROWS × WIDTH) by CHANNELS channels. Of a gradient at the input
of a convolution at stride 2, the tile's pixels are two apart, and there are four kinds of tiles: pixels that
lie alike in cells of 2 × 2 have the same taps. HEIGHT × WIDTH are the pixels of an image on the convolution's
smaller side.

A map (B, H, W, C) is read and written in boxes by the copy engine (BOXES), or else by its address.
"""

import triton
import triton.language as tl

from fastpeer.kernels.fused.sign_bits import packed, unpacked


@triton.jit(do_not_specialize=["batch"])
def _convolution(
    x,  # (batch, H, W, INTO)
    weight,  # (OUT, SIDE² · INTO); BACK: (INTO, SIDE² · OUT)
    y,  # (batch, H, W, OUT)
    residual,  # like y; only where SUMS
    mask,  # like y, or PACKED like signs; only where MASKS
    bias,  # (OUT,), only where BIAS
    signs,  # (batch, H, W, OUT / 8), which of y's values are above zero; only where SIGNS
    batch,
    HEIGHT: tl.constexpr, WIDTH: tl.constexpr, INTO: tl.constexpr, OUT: tl.constexpr,
    IMAGES: tl.constexpr, ROWS: tl.constexpr, CHANNELS: tl.constexpr, DEPTH: tl.constexpr,
    SIDE: tl.constexpr, STRIDE: tl.constexpr, BACK: tl.constexpr, BOXES: tl.constexpr, STAGES: tl.constexpr,
    BIAS: tl.constexpr, SUMS: tl.constexpr, RECTIFIES: tl.constexpr, MASKS: tl.constexpr,
    SIGNS: tl.constexpr, PACKED: tl.constexpr,
):  # fmt: skip
    STRIPES: tl.constexpr = (HEIGHT + ROWS - 1) // ROWS
    CHUNKS: tl.constexpr = (INTO + DEPTH - 1) // DEPTH
    # How far apart what a tile reads, and what it writes, is.
    READ: tl.constexpr = 1 if BACK else STRIDE
    WRITTEN: tl.constexpr = STRIDE if BACK else 1
    image = tl.program_id(0) // STRIPES * IMAGES
    row = tl.program_id(0) % STRIPES * ROWS
    first = tl.program_id(1) * CHANNELS
    # The place in a cell; tiles with most taps come first.
    cell = WRITTEN * WRITTEN - 1 - tl.program_id(2)
    low, late = cell // WRITTEN, cell % WRITTEN
    total = tl.zeros((CHANNELS, IMAGES * ROWS * WIDTH), tl.float32)
    taps = _taps_along(low, SIDE, WRITTEN) * _taps_along(late, SIDE, WRITTEN)
    for step in tl.range(0, taps * CHUNKS, num_stages=STAGES):
        tap = step // CHUNKS
        channel = step % CHUNKS * DEPTH
        down, dy = _tap(tap // SIDE if WRITTEN == 1 else tap >> late, low, SIDE, WRITTEN, BACK)
        right, dx = _tap(tap % SIDE if WRITTEN == 1 else tap & late, late, SIDE, WRITTEN, BACK)
        pixels = _read(
            x, batch, image, row, down, right, channel, READ, HEIGHT, WIDTH, INTO, IMAGES, ROWS, DEPTH, BOXES
        )
        # Beyond a tap's last channel these are the next tap's weights: they meet pixels that are read as
        # zeros, or what they make is not stored.
        taken = _weights(
            weight, channel, first, dy * SIDE + dx, INTO, OUT, CHANNELS, DEPTH, SIDE, BACK, BOXES
        )
        total = tl.dot(taken, pixels.T, total)
    out = total.T
    if BIAS:
        column = first + tl.arange(0, CHANNELS)
        out += tl.load(bias + column, mask=column < OUT, other=0.0).to(tl.float32)[None, :]
    if SUMS:
        out += _read_like_y(
            residual, batch, image, row, low, late, first,
            WRITTEN, HEIGHT, WIDTH, OUT, IMAGES, ROWS, CHANNELS, BOXES,
        ).to(tl.float32)  # fmt: skip
    if RECTIFIES:
        out = tl.maximum(out, 0.0, propagate_nan=tl.PropagateNan.ALL)
    if MASKS and PACKED:
        place, inside = _places(
            batch, image, row, low, late, first // 8,
            WRITTEN, HEIGHT, WIDTH, OUT // 8, IMAGES, ROWS, CHANNELS // 8,
        )  # fmt: skip
        out = tl.where(unpacked(tl.load(mask + place, mask=inside, other=0)), out, 0.0)
    elif MASKS:
        let_through = _read_like_y(
            mask, batch, image, row, low, late, first,
            WRITTEN, HEIGHT, WIDTH, OUT, IMAGES, ROWS, CHANNELS, BOXES,
        )  # fmt: skip
        out = tl.where(let_through.to(tl.float32) > 0, out, 0.0)
    rounded = out.to(y.dtype if BOXES else y.dtype.element_ty)
    if SIGNS:
        place, inside = _places(
            batch, image, row, low, late, first // 8,
            WRITTEN, HEIGHT, WIDTH, OUT // 8, IMAGES, ROWS, CHANNELS // 8,
        )  # fmt: skip
        tl.store(signs + place, packed(rounded.to(tl.float32) > 0), mask=inside)
    _write(
        y, rounded, batch, image, row, low, late, first,
        WRITTEN, HEIGHT, WIDTH, OUT, IMAGES, ROWS, CHANNELS, BOXES,
    )  # fmt: skip


@triton.jit
def _taps_along(place, SIDE: tl.constexpr, WRITTEN: tl.constexpr):
    """Return how many taps along an axis reach a pixel at a place (0 or 1) in its cell."""
    if WRITTEN == 1:
        return SIDE
    elif SIDE == 3:
        # The middle one, or the two outer ones.
        return 1 + place
    else:
        return 1 - place


@triton.jit
def _tap(number, place, SIDE: tl.constexpr, WRITTEN: tl.constexpr, BACK: tl.constexpr):
    """Return how far from a pixel the source of a tap along an axis lies, and which of the weights is its."""
    if WRITTEN == 2:
        return number, SIDE // 2 + place - 2 * number
    elif BACK:
        return number - SIDE // 2, SIDE - 1 - number
    else:
        return number - SIDE // 2, number


@triton.jit
def _weights(
    weight, channel, first, tap, INTO: tl.constexpr, OUT: tl.constexpr, CHANNELS: tl.constexpr,
    DEPTH: tl.constexpr, SIDE: tl.constexpr, BACK: tl.constexpr, BOXES: tl.constexpr,
):  # fmt: skip
    """Return a tap's weights (CHANNELS, DEPTH)."""
    row = first + tl.arange(0, CHANNELS)
    column = channel + tl.arange(0, DEPTH)
    if BOXES and BACK:
        return weight.load([channel, tap * OUT + first]).T
    elif BOXES:
        return weight.load([first, tap * INTO + channel])
    elif BACK:
        place = column[:, None] * (SIDE * SIDE * OUT) + tap * OUT + row[None, :]
        return tl.load(weight + place, mask=(column < INTO)[:, None] & (row < OUT)[None, :], other=0.0).T
    else:
        place = row[:, None] * (SIDE * SIDE * INTO) + tap * INTO + column[None, :]
        return tl.load(weight + place, mask=(row < OUT)[:, None] & (column < INTO)[None, :], other=0.0)


@triton.jit
def _read(
    x, batch, image, row, down, right, channel, STEP: tl.constexpr, HEIGHT: tl.constexpr, WIDTH: tl.constexpr,
    INTO: tl.constexpr, IMAGES: tl.constexpr, ROWS: tl.constexpr, DEPTH: tl.constexpr, BOXES: tl.constexpr,
):  # fmt: skip
    """Return what a tap reads, (pixels, DEPTH): each STEP-th pixel, moved by (down, right); zeros outside."""
    if BOXES:
        if STEP == 1:
            box = x.load([image, row + down, right, channel])
        else:
            # In pairs of rows and of columns; moving by -1 leads to the second of the pair before.
            above, left = (down + 2) // 2 - 1, (right + 2) // 2 - 1
            box = x.load([image, row + above, (down + 2) % 2, left, (right + 2) % 2 * INTO + channel])
        return box.reshape(IMAGES * ROWS * WIDTH, DEPTH)
    else:
        place, inside = _places(
            batch, image, row, down, right, channel, STEP, HEIGHT, WIDTH, INTO, IMAGES, ROWS, DEPTH
        )
        return tl.load(x + place, mask=inside, other=0.0)


@triton.jit
def _read_like_y(
    like_y, batch, image, row, low, late, first, STEP: tl.constexpr, HEIGHT: tl.constexpr,
    WIDTH: tl.constexpr, OUT: tl.constexpr, IMAGES: tl.constexpr, ROWS: tl.constexpr, CHANNELS: tl.constexpr,
    BOXES: tl.constexpr,
):  # fmt: skip
    """Return a tensor's values at a tile's pixels, (pixels, CHANNELS)."""
    if BOXES:
        if STEP == 1:
            box = like_y.load([image, row, 0, first])
        else:
            # In pairs of rows, of which one is WIDTH pairs of columns.
            box = like_y.load([image, row, low * WIDTH, late, first])
        return box.reshape(IMAGES * ROWS * WIDTH, CHANNELS)
    else:
        place, inside = _places(
            batch, image, row, low, late, first, STEP, HEIGHT, WIDTH, OUT, IMAGES, ROWS, CHANNELS
        )
        return tl.load(like_y + place, mask=inside, other=0.0)


@triton.jit
def _write(
    y, out, batch, image, row, low, late, first, STEP: tl.constexpr, HEIGHT: tl.constexpr,
    WIDTH: tl.constexpr, OUT: tl.constexpr, IMAGES: tl.constexpr, ROWS: tl.constexpr, CHANNELS: tl.constexpr,
    BOXES: tl.constexpr,
):  # fmt: skip
    """Store a tile (pixels, CHANNELS), of the dtype of y."""
    if BOXES and STEP == 1:
        y.store([image, row, 0, first], out.reshape(IMAGES, ROWS, WIDTH, CHANNELS))
    elif BOXES:
        y.store([image, row, low * WIDTH, late, first], out.reshape(IMAGES, ROWS, WIDTH, 1, CHANNELS))
    else:
        place, inside = _places(
            batch, image, row, low, late, first, STEP, HEIGHT, WIDTH, OUT, IMAGES, ROWS, CHANNELS
        )
        tl.store(y + place, out, mask=inside)


@triton.jit
def _places(
    batch, image, row, down, right, channel, STEP: tl.constexpr, HEIGHT: tl.constexpr, WIDTH: tl.constexpr,
    OF: tl.constexpr, IMAGES: tl.constexpr, ROWS: tl.constexpr, CHANNELS: tl.constexpr,
):  # fmt: skip
    """Return where the values at a tile's pixels lie, (pixels, CHANNELS), and which there are."""
    pixel = tl.arange(0, IMAGES * ROWS * WIDTH)
    of = image + pixel // (ROWS * WIDTH)
    y = (row + pixel // WIDTH % ROWS) * STEP + down
    x = pixel % WIDTH * STEP + right
    column = channel + tl.arange(0, CHANNELS)
    inside = (of < batch) & (y >= 0) & (y < STEP * HEIGHT) & (x >= 0) & (x < STEP * WIDTH)
    place = ((of * (STEP * HEIGHT) + y) * (STEP * WIDTH) + x) * OF
    return place[:, None] + column[None, :], inside[:, None] & (column < OF)[None, :]
