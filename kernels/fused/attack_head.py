"""The last layers of an attacked network, forward and back, in one launch: a program for each image.

A program goes twice through the channels: for the logits it needs all of their means, and each channel's
gradient needs all logits. What it reads again the second time is in the cache.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from fastpeer.kernels.attack_head import takes
from fastpeer.kernels.fused.softmax import one_hot, softmax
from fastpeer.kernels.refusal import require

_TILE = 8192
"""Values of the features, or of the weights, at once: 32 for each thread."""
_WARPS = 8


def attack_head(
    features: Tensor, weight: Tensor, bias: Tensor, target: Tensor, scale: float = 1.0, relu: bool = False
) -> Tensor:
    """Return the gradient at the features of scale · Σ KL(target ‖ softmax(logits)), channels-last.

    Arguments and result are those of `fastpeer.kernels.attack_head.attack_head`; the features are bfloat16,
    float16 or float32, the classifier's weights float32. A label that is no class yields NaN for its image.

    Raises:
        KernelRefusal: a shape, dtype, memory format or device does not fit, or there are more than 1024
            classes or pixels of an image.
    """
    _check(features, weight, bias, target)
    batch, channels, height, width = features.shape
    gradient = torch.empty_like(features, memory_format=torch.channels_last)
    rows, columns = (triton.next_power_of_2(count) for count in (height * width, len(weight)))
    chunk = min(triton.next_power_of_2(channels), max(16, _TILE // max(rows, columns)))
    with torch.cuda.device_of(features):
        _attack_head[(batch,)](
            features.detach(), weight.detach().contiguous(), bias.detach().contiguous(),
            target.detach().contiguous(), gradient, scale,
            PIXELS=height * width, CHANNELS=channels, CLASSES=len(weight), ROWS=rows, COLUMNS=columns,
            CHUNK=chunk, RECTIFIED=relu, num_warps=_WARPS, enable_fp_fusion=True,
        )  # fmt: skip
    return gradient


def _check(features: Tensor, weight: Tensor, bias: Tensor, target: Tensor) -> None:
    described = [f"{one.dtype} {tuple(one.shape)}" for one in (features, weight, bias, target)]
    must = (
        "features (B, C, H, W) must be channels-last in bfloat16, float16 or float32, weight (K, C) and bias "
        "(K,) float32, and target floating (B, K) or int64 (B,), with at most 1024 classes and pixels"
    )
    fits = takes(features, weight) and bias.dtype == torch.float32 and bias.shape == weight.shape[:1]
    shape = (len(features), len(weight))
    labels = target.dtype == torch.int64 and target.shape == shape[:1]
    fits = fits and (labels or (target.is_floating_point() and target.shape == shape))
    require(fits, "fused attack head", f"{must}, got {', '.join(described)}")
    devices = {one.device for one in (features, weight, bias, target)}
    must = f"all tensors must be on one device, got {sorted(map(str, devices))}"
    require(len(devices) == 1, "fused attack head", must)


@triton.jit
def _attack_head(
    features,  # (images, PIXELS, CHANNELS)
    weight,  # (CLASSES, CHANNELS)
    bias,  # (CLASSES,)
    target,  # (images, CLASSES), or labels (images,)
    gradient,  # like features
    scale: tl.float64,
    PIXELS: tl.constexpr, CHANNELS: tl.constexpr, CLASSES: tl.constexpr, ROWS: tl.constexpr,
    COLUMNS: tl.constexpr, CHUNK: tl.constexpr, RECTIFIED: tl.constexpr,
):  # fmt: skip
    image = tl.program_id(0).to(tl.int64)
    pixel = tl.arange(0, ROWS)
    column = tl.arange(0, COLUMNS)
    features += image * (PIXELS * CHANNELS)
    gradient += image * (PIXELS * CHANNELS)
    logits = tl.load(bias + column, mask=column < CLASSES, other=0.0)
    for first in range(0, CHANNELS, CHUNK):
        channel = first + tl.arange(0, CHUNK)
        plane = _tile(features, pixel, channel, PIXELS, CHANNELS).to(tl.float32)
        means = tl.div_rn(tl.sum(plane, axis=0), PIXELS * 1.0)
        logits += tl.sum(_tile(weight, column, channel, CLASSES, CHANNELS) * means[None, :], axis=1)
    inside = (column < CLASSES)[None, :]
    probability = softmax(logits[None, :], inside, 1.0)
    if target.dtype.element_ty == tl.int64:
        label = tl.load(target + image + tl.arange(0, 1))
        expected = one_hot(label, column[None, :], CLASSES).to(tl.float32)
    else:
        expected = tl.load(target + image * CLASSES + column[None, :], mask=inside, other=0.0).to(tl.float32)
    climb = tl.where(inside, (probability - expected) * tl.full((), scale, tl.float32), 0.0)
    climb = climb.reshape(COLUMNS)
    for first in range(0, CHANNELS, CHUNK):
        channel = first + tl.arange(0, CHUNK)
        taken = _tile(weight, column, channel, CLASSES, CHANNELS)
        share = tl.div_rn(tl.sum(taken * climb[:, None], axis=0), PIXELS * 1.0)[None, :]
        found = tl.broadcast_to(share, (ROWS, CHUNK))
        if RECTIFIED:
            plane = _tile(features, pixel, channel, PIXELS, CHANNELS).to(tl.float32)
            found = tl.where(plane > 0, found, 0.0)
        stored = (pixel < PIXELS)[:, None] & (channel < CHANNELS)[None, :]
        place = gradient + pixel[:, None] * CHANNELS + channel[None, :]
        tl.store(place, found.to(gradient.dtype.element_ty), mask=stored)


@triton.jit
def _tile(matrix, row, column, ROWS: tl.constexpr, COLUMNS: tl.constexpr):
    """Return some rows and columns of a matrix (ROWS, COLUMNS); zeros outside."""
    inside = (row < ROWS)[:, None] & (column < COLUMNS)[None, :]
    return tl.load(matrix + row[:, None] * COLUMNS + column[None, :], mask=inside, other=0.0)
