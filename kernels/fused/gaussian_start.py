"""`gaussian_start` in Triton: one pass over the images."""

import math

import torch
import triton
import triton.language as tl
from torch import Tensor

from fastpeer.kernels.fused.counter_bits import random_bits

BLOCK = 1024
_LIMIT = 2**31
_UNIT = tl.constexpr(2.0**-32)
_TURN = tl.constexpr(2 * math.pi)


def gaussian_start(images: Tensor, std: float, key: Tensor) -> Tensor:
    """Return x + std·N(0, 1), unclamped: `fastpeer.kernels.gaussian_start.gaussian_start` in one launch.

    Args:
        images: (B, C, H, W), any floating dtype, contiguous or channels-last.
        std: standard deviation of the noise; the kernel is compiled for each anew.
        key: int64 (), on the device of `images`.

    Returns:
        (B, C, H, W), of the dtype and in the memory format of `images`.

    Raises:
        ValueError: another memory format, another dtype, or 2³¹ elements or more.
    """
    channels_last = _is_channels_last(images)
    _check_key(images, key)
    result = torch.empty_like(images)
    if images.numel() == 0:
        return result
    channels, height, width = images.shape[1:]
    with torch.cuda.device_of(images):  # type: ignore[no-untyped-call]
        _gaussian_start[(triton.cdiv(images.numel(), BLOCK),)](
            images, key, result, images.numel(),
            STD=std, CHANNELS=channels, PLANE=height * width, CHANNELS_LAST=channels_last,
            DTYPE=tl.float64 if images.dtype == torch.float64 else tl.float32, BLOCK=BLOCK,
            num_warps=4, enable_fp_fusion=False,
        )  # fmt: skip
    return result


def _is_channels_last(images: Tensor) -> bool:
    if not images.is_floating_point():
        raise ValueError(f"images must be of a floating dtype, not {images.dtype}")
    if images.numel() >= _LIMIT:
        raise ValueError("images have 2^31 elements or more")
    if images.is_contiguous():
        return False
    if images.dim() != 4 or not images.is_contiguous(memory_format=torch.channels_last):
        raise ValueError(f"images must be contiguous or channels-last, not of strides {images.stride()}")
    return True


def _check_key(images: Tensor, key: Tensor) -> None:
    if key.dtype != torch.int64 or key.dim() != 0 or key.device != images.device:
        raise ValueError("key must be one int64 number, of shape (), on the device of the images")


@triton.jit
def _gaussian_start(
    images,  # [B, C, H, W] or [B, H, W, C]
    key,  # int64
    result,  # like images
    count,
    STD: tl.constexpr,
    CHANNELS: tl.constexpr,
    PLANE: tl.constexpr,
    CHANNELS_LAST: tl.constexpr,
    DTYPE: tl.constexpr,
    BLOCK: tl.constexpr,
):
    places = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    within = places < count
    counters = places
    if CHANNELS_LAST:
        pixels = places // CHANNELS
        counters = (pixels // PLANE * CHANNELS + places % CHANNELS) * PLANE + pixels % PLANE
    bits = random_bits(tl.load(key), counters)
    radius = ((bits >> 32) + 1).to(DTYPE) * _UNIT
    turns = (bits & 0xFFFFFFFF).to(DTYPE) * _UNIT
    noise = tl.sqrt(-2 * tl.log(radius)) * _cosine(turns, TERMS=12 if turns.dtype == tl.float64 else 7)
    moved = tl.load(images + places, mask=within).to(DTYPE) + noise * STD
    tl.store(result + places, moved.to(result.dtype.element_ty), mask=within)


@triton.jit
def _cosine(turns, TERMS: tl.constexpr):
    # cos(2π·turns) for turns in [0, 1], without tl.cos's branch for large arguments: it is the sine of an
    # angle within ±π/2, where sin x = x(1 − x²/(2·3)·(1 − x²/(4·5)·(…))) converges fast.
    angle = _TURN * (tl.abs(turns - 0.5) - 0.25)
    square = angle * angle
    series = tl.full(turns.shape, 1.0, turns.dtype)
    for term in tl.static_range(TERMS, 0, -1):
        series = 1.0 - square * series * (1.0 / (2 * term * (2 * term + 1)))
    return angle * series
