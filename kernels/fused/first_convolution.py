"""The 3×3 convolution that reads the pixels, forward with bias and ReLU in one pass, and back to the pixels.

Forward, a pixel's patch times the weights is one matrix product. Patches are up to 36 values, which their
neighbours find in the cache. Each factor is split into two TF32 numbers, and the three products of these that
matter come to float32's accuracy.

Back, matrix products over three rows of the gradient map (a row and its neighbours) give what each pixel adds
to the pixels left of, at and right of it; moving that by one pixel and adding it up is all that remains. Thus
the map is read three times, partly from the cache, rather than nine times.
"""

from collections.abc import Sequence
from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from fastpeer.kernels.first_convolution import MOST_CHANNELS, MOST_PIXEL_CHANNELS, MOST_WIDTH, takes
from fastpeer.kernels.fused.pgd_update import not_finite, stepped
from fastpeer.kernels.refusal import require

_PIXELS = 128
"""Pixels of a program."""
_WIDEST_PRODUCT = 64
"""Channels of the result that one product computes forward, or sums over on the way back."""
_RESULTS = (torch.bfloat16, torch.float16, torch.float32)


def first_convolution(images: Tensor, weight: Tensor, bias: Tensor, relu: bool, dtype: torch.dtype) -> Tensor:
    """Return [relu](conv(images) + bias), (B, O, H, W) in channels-last memory.

    Arguments and result are those of `fastpeer.kernels.first_convolution.first_convolution`, in float32; the
    result is bfloat16, float16 or float32. Images and weights that are not channels-last are converted first,
    which is a launch more for each.

    Raises:
        KernelRefusal: a shape, dtype or device does not fit.
    """
    _check_forward(images, weight, bias, dtype)
    batch, into, height, width = images.shape
    out = len(weight)
    y = torch.empty(batch, height, width, out, dtype=dtype, device=images.device)
    pixels = batch * height * width
    taps = max(16, triton.next_power_of_2(9 * into))
    # Twice as many would not fit into registers where a patch of four channels takes 64 taps.
    channels = min(_WIDEST_PRODUCT if taps < 64 else 32, triton.next_power_of_2(out))
    with torch.cuda.device_of(images):
        _forward[(triton.cdiv(pixels, _PIXELS), triton.cdiv(out, channels))](
            _last(images), _last(weight), bias.detach().contiguous(), y, pixels,
            INTO=into, HEIGHT=height, WIDTH=width, OUT=out,
            PIXELS=_PIXELS, CHANNELS=channels, TAPS=taps, RECTIFIES=relu,
            num_warps=4, num_stages=1, enable_fp_fusion=True,
        )  # fmt: skip
    return y.permute(0, 3, 1, 2)


def first_convolution_gradient(gradient: Tensor, weight: Tensor, stages: int = 1) -> Tensor:
    """Return the gradient at the pixels, (B, C, H, W) in channels-last memory.

    Arguments and result are those of `fastpeer.kernels.first_convolution.first_convolution_gradient`, with
    weights in float32. A gradient or weights that are not channels-last are converted first. `stages` above 1
    copy rows ahead of their product, past the first-level cache, which else holds rows for the next product.

    Raises:
        KernelRefusal: a shape, dtype or device does not fit.
    """
    return _back_to_pixels(gradient, weight, None, stages)


def first_convolution_step(
    gradient: Tensor, weight: Tensor, adversarial: Tensor, images: Tensor, step_size: float, epsilon: float,
    nonfinite_count: Tensor | None = None,
) -> Tensor:  # fmt: skip
    """Return the adversarial images after a step of the attack, (B, C, H, W) in channels-last memory.

    Arguments and result are those of `fastpeer.kernels.first_convolution.first_convolution_step`, with images
    in float32. A pixel's gradient is rounded as `first_convolution_gradient` rounds it, so that the result is
    that of both kernels one after the other, to the last bit; the gradient is written to no memory.

    Raises:
        KernelRefusal: a shape, dtype or device does not fit.
    """
    _check_step(gradient, weight, adversarial, images, nonfinite_count)
    counter = images if nonfinite_count is None else nonfinite_count
    step = _Step(_last(adversarial), _last(images), counter, step_size, epsilon, nonfinite_count is not None)
    return _back_to_pixels(gradient, weight, step, stages=1)


class _Step(NamedTuple):
    """A step of the attack, as the kernel takes it."""

    adversarial: Tensor
    images: Tensor
    nonfinite_count: Tensor
    step_size: float
    epsilon: float
    counts: bool


def _back_to_pixels(gradient: Tensor, weight: Tensor, step: _Step | None, stages: int) -> Tensor:
    _check_back(gradient, weight)
    batch, out, height, width = gradient.shape
    into = weight.shape[1]
    dtype = gradient.dtype if step is None else step.images.dtype
    found = torch.empty(batch, height, width, into, dtype=dtype, device=gradient.device)
    columns = triton.next_power_of_2(width)
    pixels = max(_PIXELS, columns)
    taken = step or _Step(found, found, found, 0.0, 0.0, False)
    with torch.cuda.device_of(gradient):
        _back[(triton.cdiv(batch * height, pixels // columns),)](
            _last(gradient), _last(weight), found, *taken[:5], batch * height,
            INTO=into, HEIGHT=height, WIDTH=width, OUT=out,
            PIXELS=pixels, COLUMNS=columns, DEPTH=min(_WIDEST_PRODUCT, out & -out), STAGES=stages,
            STEPS=step is not None, COUNTS=taken.counts, num_warps=4, enable_fp_fusion=True,
        )  # fmt: skip
    return found.permute(0, 3, 1, 2)


def _last(tensor: Tensor) -> Tensor:
    """View (N, C, H, W) as (N, H, W, C) without gaps; another memory format is converted."""
    return tensor.detach().permute(0, 2, 3, 1).contiguous()


def _check_forward(images: Tensor, weight: Tensor, bias: Tensor, dtype: torch.dtype) -> None:
    given = [images, weight, bias]
    fits = all(tensor.dtype == torch.float32 for tensor in given) and bias.shape == weight.shape[:1]
    described = ", ".join(f"{tensor.dtype} {tuple(tensor.shape)}" for tensor in given)
    must = "images, weight and bias must be float32 (B, C, H, W), (O, C, 3, 3) and (O,)"
    _require(fits and images.dim() == weight.dim() == 4, f"{must}, got {described}")
    _require(dtype in _RESULTS, f"the result must be bfloat16, float16 or float32, got {dtype}")
    _check_shapes(images.shape, weight.shape)
    _check_devices(*given)


def _check_back(gradient: Tensor, weight: Tensor) -> None:
    fits = gradient.dtype in _RESULTS and weight.dtype == torch.float32
    fits = fits and gradient.dim() == weight.dim() == 4 and gradient.shape[1] == len(weight)
    described = ", ".join(f"{tensor.dtype} {tuple(tensor.shape)}" for tensor in (gradient, weight))
    must = "gradient and weight must be bfloat16, float16 or float32 (B, O, H, W) and float32 (O, C, 3, 3)"
    _require(fits, f"{must}, got {described}")
    _check_shapes([len(gradient), weight.shape[1], *gradient.shape[2:]], weight.shape)
    _check_devices(gradient, weight)


def _check_step(
    gradient: Tensor, weight: Tensor, adversarial: Tensor, images: Tensor, nonfinite_count: Tensor | None
) -> None:
    _check_back(gradient, weight)
    shape = len(gradient), weight.shape[1], *gradient.shape[2:]
    for given in (adversarial, images):
        found = f"{given.dtype} {tuple(given.shape)}"
        fits = given.shape == shape and given.dtype == torch.float32
        _require(fits, f"adversarial and images must be float32 {shape}, got {found}")
    counters = [] if nonfinite_count is None else [nonfinite_count]
    for counter in counters:
        fits = counter.dtype == torch.int64 and counter.numel() == 1
        _require(
            fits, f"nonfinite_count must be one int64 number, got {counter.dtype} {tuple(counter.shape)}"
        )
    _check_devices(gradient, adversarial, images, *counters)


def _check_shapes(images: Sequence[int], weight: Sequence[int]) -> None:
    must = (
        f"images (B, C, H, W) must have up to {MOST_PIXEL_CHANNELS} channels and {MOST_WIDTH} columns, and "
        f"weights (O, C, 3, 3) a multiple of 16 up to {MOST_CHANNELS} filters"
    )
    _require(takes(images, weight), f"{must}, got {tuple(images)} and {tuple(weight)}")


def _check_devices(*given: Tensor) -> None:
    devices = {tensor.device for tensor in given}
    _require(len(devices) == 1, f"all tensors must be on one device, got {sorted(map(str, devices))}")


def _require(fulfilled: bool, message: str) -> None:
    require(fulfilled, "fused first convolution", message)


@triton.jit
def _forward(
    images,  # (pixels, INTO)
    weight,  # (OUT, 3, 3, INTO)
    bias,  # (OUT,)
    y,  # (pixels, OUT)
    pixels,  # of all images
    INTO: tl.constexpr, HEIGHT: tl.constexpr, WIDTH: tl.constexpr, OUT: tl.constexpr,
    PIXELS: tl.constexpr, CHANNELS: tl.constexpr, TAPS: tl.constexpr, RECTIFIES: tl.constexpr,
):  # fmt: skip
    # Of a patch, the values of one row are neighbours in memory: three pixels with all their channels.
    ROW: tl.constexpr = 3 * INTO
    place = tl.program_id(0) * PIXELS + tl.arange(0, PIXELS)
    down = place // WIDTH % HEIGHT
    right = place % WIDTH
    tap = tl.arange(0, TAPS)
    dy = tap // ROW - 1
    dx = tap % ROW // INTO - 1
    inside = ((down[:, None] + dy[None, :]).to(tl.uint32) < HEIGHT) & (
        (right[:, None] + dx[None, :]).to(tl.uint32) < WIDTH
    )
    inside = inside & (place < pixels)[:, None] & (tap < 3 * ROW)[None, :]
    offset = dy * (WIDTH * INTO) + tap % ROW - INTO
    patch = tl.load(images + place[:, None] * INTO + offset[None, :], mask=inside, other=0.0)
    channel = tl.program_id(1) * CHANNELS + tl.arange(0, CHANNELS)
    present = channel < OUT
    filters = tl.load(
        weight + channel[None, :] * (3 * ROW) + tap[:, None],
        mask=present[None, :] & (tap < 3 * ROW)[:, None],
        other=0.0,
    )
    out = tl.dot(patch, filters, input_precision="tf32x3")
    out += tl.load(bias + channel, mask=present, other=0.0)[None, :]
    if RECTIFIES:
        out = tl.maximum(out, 0.0, propagate_nan=tl.PropagateNan.ALL)
    stored = (place < pixels)[:, None] & present[None, :]
    tl.store(y + place[:, None] * OUT + channel[None, :], out.to(y.dtype.element_ty), mask=stored)


@triton.jit
def _back(
    gradient,  # (rows, WIDTH, OUT)
    weight,  # (OUT, 3, 3, INTO)
    found,  # (rows, WIDTH, INTO)
    adversarial,  # like found, as all below only where STEPS
    images,  # like found
    nonfinite_count,  # (1,), only where COUNTS
    step_size: tl.float64,
    epsilon: tl.float64,
    rows,  # of all images
    INTO: tl.constexpr, HEIGHT: tl.constexpr, WIDTH: tl.constexpr, OUT: tl.constexpr,
    PIXELS: tl.constexpr, COLUMNS: tl.constexpr, DEPTH: tl.constexpr, STAGES: tl.constexpr,
    STEPS: tl.constexpr, COUNTS: tl.constexpr,
):  # fmt: skip
    ROWS: tl.constexpr = PIXELS // COLUMNS
    pixel = tl.arange(0, PIXELS)
    right = pixel % COLUMNS
    row = tl.program_id(0) * ROWS + pixel // COLUMNS
    down = row % HEIGHT
    present = (right < WIDTH) & (row < rows)
    place = row * WIDTH + right
    # Of the product's 16 columns, 4·dx + c is what a pixel adds at channel c of the pixel 1 - dx left of it.
    total = tl.zeros((PIXELS, 16), tl.float32)
    for step in tl.range(0, 3 * (OUT // DEPTH), num_stages=STAGES):
        # From the row above to the one below; the weights' rows are the other way round.
        dy = step % 3
        first = step // 3 * DEPTH
        inside = present & ((down + dy - 1).to(tl.uint32) < HEIGHT)
        channel = first + tl.arange(0, DEPTH)
        offset = (place + (dy - 1) * WIDTH)[:, None] * OUT + channel[None, :]
        row_of_map = tl.load(gradient + offset, mask=inside[:, None], other=0.0)
        taps = _taps(weight, channel, 2 - dy, INTO).to(gradient.dtype.element_ty)
        total = tl.dot(row_of_map, taps, total, input_precision="tf32x3")
    # Column dx of the weights connects a pixel with the result's pixel at 1 - dx.
    dx = (tl.arange(0, 16) // 4)[None, :]
    source = right[:, None] + 1 - dx
    inside = (dx < 3) & (source >= 0) & (source < COLUMNS)
    index = tl.where(inside, pixel[:, None] + 1 - dx, pixel[:, None])
    moved = tl.where(inside, tl.gather(total, index, 0), 0.0)
    summed = tl.sum(tl.reshape(moved, (PIXELS, 4, 4)), axis=1)
    channel = tl.arange(0, 4)
    stored = present[:, None] & (channel < INTO)[None, :]
    offset = place[:, None] * INTO + channel[None, :]
    if STEPS:
        climb = summed.to(gradient.dtype.element_ty).to(tl.float32)
        if COUNTS:
            lost = not_finite(climb) & stored
            # In one sum: Triton 3.6 compiles one axis after the other for no Blackwell GPU.
            count = tl.sum(lost.to(tl.int64))
            tl.atomic_add(nonfinite_count, count, mask=count > 0, sem="relaxed")
        before = tl.load(adversarial + offset, mask=stored, other=0.0)
        center = tl.load(images + offset, mask=stored, other=0.0)
        tl.store(found + offset, stepped(before, climb, center, step_size, epsilon), mask=stored)
    else:
        tl.store(found + offset, summed.to(found.dtype.element_ty), mask=stored)


@triton.jit
def _taps(weight, channel, dy, INTO: tl.constexpr):
    """Return row dy of some channels' weights, (DEPTH, 4 · dx + c); zeros where there is no such tap."""
    dx = tl.arange(0, 16) // 4
    c = tl.arange(0, 16) % 4
    offset = (dy * 3 + dx) * INTO + c
    inside = (dx < 3) & (c < INTO)
    return tl.load(weight + channel[:, None] * (9 * INTO) + offset[None, :], mask=inside[None, :], other=0.0)
