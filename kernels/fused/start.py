"""What the starts of an attack share in Triton: the launch, counters, and storing the result."""

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from fastpeer.kernels.fused.counter_bits import random_bits
from fastpeer.kernels.refusal import KernelRefusal

_NAME = "fused start"
BLOCK = 1024
_LIMIT = 2**31


def noisy(
    kernel: Any, images: Tensor, amplitude: float, key: Tensor, clamp: bool, *, by_image: bool = False
) -> Tensor:
    """Launch a start's kernel on images.

    Args:
        kernel: takes images, key, result, the number of elements, the amplitude, and compile-time constants.
        images: (B, C, H, W), any floating dtype, contiguous or channels-last.
        amplitude: what the kernel multiplies its noise with.
        key: int64 (), on the device of `images`.
        clamp: whether to clamp the result to [0, 1].
        by_image: whether a program has a whole image, not BLOCK elements.

    Returns:
        (B, C, H, W), of the dtype and in the memory format of `images`.

    Raises:
        KernelRefusal: another memory format, another dtype, or 2³¹ elements or more.
    """
    channels_last = _is_channels_last(images)
    _check_key(images, key)
    result = torch.empty_like(images)
    if images.numel() == 0:
        return result
    channels, height, width = images.shape[1:]
    exact = images.dtype == torch.float64
    programs = len(images) if by_image else triton.cdiv(images.numel(), BLOCK)
    with torch.cuda.device_of(images):  # type: ignore[no-untyped-call]
        kernel[(programs,)](
            images, key, result, images.numel(), amplitude,
            CHANNELS=channels, PLANE=height * width, CHANNELS_LAST=channels_last, CLAMP=clamp,
            DTYPE=tl.float64 if exact else tl.float32, BLOCK=BLOCK,
            # float64 takes twice the registers: with 4 warps Triton 3.6 spills some.
            # Unfused: bit equality with PyTorch.
            num_warps=8 if exact else 4, enable_fp_fusion=False,
        )  # fmt: skip
    return result


def _is_channels_last(images: Tensor) -> bool:
    if not images.is_floating_point():
        raise KernelRefusal(f"{_NAME}: images must be floating, got {images.dtype}")
    if images.numel() >= _LIMIT:
        raise KernelRefusal(f"{_NAME}: images must have less than 2^31 elements, got {images.numel()}")
    if images.is_contiguous():
        return False
    if images.dim() != 4 or not images.is_contiguous(memory_format=torch.channels_last):
        raise KernelRefusal(
            f"{_NAME}: images must be contiguous or channels-last, got strides {images.stride()}"
        )
    return True


def _check_key(images: Tensor, key: Tensor) -> None:
    if key.dtype != torch.int64 or key.dim() != 0 or key.device != images.device:
        raise KernelRefusal(
            f"{_NAME}: key must be one int64 number (), on the device of the images ({images.device}), "
            f"got {key.dtype} {tuple(key.shape)} on {key.device}"
        )


@triton.jit
def element_bits(
    key, CHANNELS: tl.constexpr, PLANE: tl.constexpr, CHANNELS_LAST: tl.constexpr, BLOCK: tl.constexpr
):
    """Return offsets of a program's elements in memory, int64, and 64 random bits for each."""
    places = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    return places, bits_at(key, places, CHANNELS, PLANE, CHANNELS_LAST)


@triton.jit
def bits_at(key, places, CHANNELS: tl.constexpr, PLANE: tl.constexpr, CHANNELS_LAST: tl.constexpr):
    """Return 64 random bits for each offset in memory, int64."""
    counters = places
    if CHANNELS_LAST:
        pixels = places // CHANNELS
        counters = (pixels // PLANE * CHANNELS + places % CHANNELS) * PLANE + pixels % PLANE
    return random_bits(tl.load(key), counters)


@triton.jit
def store_noisy(images, result, places, count, noise, CLAMP: tl.constexpr):
    """Store images + noise, clamped to [0, 1] if CLAMP."""
    within = places < count
    moved = tl.load(images + places, mask=within).to(noise.dtype) + noise
    if CLAMP:
        everything: tl.constexpr = tl.PropagateNan.ALL
        moved = tl.minimum(tl.maximum(moved, 0.0, propagate_nan=everything), 1.0, propagate_nan=everything)
    tl.store(result + places, moved.to(result.dtype.element_ty), mask=within)
