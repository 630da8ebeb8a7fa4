"""One step of projected gradient ascent in the L-infinity ball, in one pass over the images."""

import torch
import triton
import triton.language as tl
from torch import Tensor

from fastpeer.kernels.refusal import require

_BLOCK = 1024
"""Pixels of a program: eight for each thread, so that float32 moves in 16 bytes at a time."""
_MOST = (1 << 31) - _BLOCK
"""The most pixels of which those of the last block can still be numbered in 32 bits."""
_ITERATES = (torch.float32, torch.float64)


def pgd_update(
    adversarial: Tensor,
    gradient: Tensor,
    images: Tensor,
    step_size: float,
    epsilon: float,
    *,
    copy: torch.dtype | None = None,
    nonfinite_count: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """Step along the gradient's sign, then back into the `epsilon` box around `images`, then into [0, 1].

    Arguments and results are those of `fastpeer.kernels.pgd_update.pgd_update`, equal to the last bit.
    The results have the memory format of `adversarial`; where gradient or images have another one, they are
    converted first, which is a launch more.

    Raises:
        KernelRefusal: a shape, dtype or device does not fit.
    """
    adversarial, gradient, images, updated, low = launchable(
        adversarial, gradient, images, copy, nonfinite_count
    )
    with torch.cuda.device_of(updated):
        _pgd_update[(triton.cdiv(updated.numel(), _BLOCK),)](
            adversarial,
            gradient,
            images,
            updated,
            low,
            updated if nonfinite_count is None else nonfinite_count,
            step_size,
            epsilon,
            updated.numel(),
            COPIES=low is not updated,
            COUNTS=nonfinite_count is not None,
            BLOCK=_BLOCK,
            num_warps=4,
            # Bit equality with PyTorch.
            enable_fp_fusion=False,
        )
    return updated, low


def launchable(
    adversarial: Tensor,
    gradient: Tensor,
    images: Tensor,
    copy: torch.dtype | None,
    nonfinite_count: Tensor | None,
) -> tuple[Tensor, ...]:
    """Prepare the launch of an attack's step, in either norm.

    Returns:
        The first three arguments in one memory format, and empty tensors for both results.

    Raises:
        KernelRefusal: a shape, dtype or device does not fit.
    """
    _check(adversarial, gradient, images, nonfinite_count)
    tensors = _alike(adversarial.detach(), gradient.detach(), images.detach())
    updated = torch.empty_like(tensors[0])
    low = updated if copy in (None, updated.dtype) else torch.empty_like(updated, dtype=copy)
    return *tensors, updated, low


def _alike(*tensors: Tensor) -> tuple[Tensor, ...]:
    """Give all tensors the order in memory of the first, without gaps."""
    first = tensors[0]
    channels_last = first.dim() == 4 and first.is_contiguous(memory_format=torch.channels_last)
    layout = torch.channels_last if channels_last else torch.contiguous_format
    return tuple(tensor.contiguous(memory_format=layout) for tensor in tensors)


def _check(adversarial: Tensor, gradient: Tensor, images: Tensor, nonfinite_count: Tensor | None) -> None:
    _require(
        adversarial.dtype in _ITERATES and images.dtype == adversarial.dtype and gradient.is_floating_point(),
        "adversarial and images must be both float32 or both float64, and gradient floating, "
        f"got {adversarial.dtype}, {images.dtype} and {gradient.dtype}",
    )
    shapes = [tuple(tensor.shape) for tensor in (adversarial, gradient, images)]
    _require(len(set(shapes)) == 1, f"all images must be of one shape, got {shapes}")
    _require(0 < adversarial.numel() <= _MOST, f"pixels must be 1 to {_MOST}, got {adversarial.numel()}")
    counters = [] if nonfinite_count is None else [nonfinite_count]
    for counter in counters:
        found = f"{counter.dtype} {tuple(counter.shape)}"
        fits = counter.dtype == torch.int64 and counter.numel() == 1
        _require(fits, f"nonfinite_count must be one int64 number, got {found}")
    devices = {tensor.device for tensor in (adversarial, gradient, images, *counters)}
    _require(len(devices) == 1, f"all tensors must be on one device, got {sorted(map(str, devices))}")


def _require(fulfilled: bool, message: str) -> None:
    require(fulfilled, "fused attack step", message)


@triton.jit
def _pgd_update(
    adversarial,
    gradient,
    images,
    updated,
    low,  # like updated, in another dtype; only where COPIES
    nonfinite_count,  # (1,), only where COUNTS
    step_size: tl.float64,
    epsilon: tl.float64,
    count,
    COPIES: tl.constexpr,
    COUNTS: tl.constexpr,
    BLOCK: tl.constexpr,
):
    pixel = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    present = pixel < count
    climb = tl.load(gradient + pixel, mask=present, other=0.0)
    if gradient.dtype.element_ty != tl.float64:
        climb = climb.to(tl.float32)
    if COUNTS:
        found = tl.sum(not_finite(climb).to(tl.int64), axis=0)
        tl.atomic_add(nonfinite_count, found, mask=found > 0, sem="relaxed")
    before = tl.load(adversarial + pixel, mask=present)
    center = tl.load(images + pixel, mask=present)
    moved = stepped(before, climb, center, step_size, epsilon)
    tl.store(updated + pixel, moved, mask=present)
    if COPIES:
        tl.store(low + pixel, moved.to(low.dtype.element_ty), mask=present)


@triton.jit
def not_finite(values):
    """Tell which values are NaN or infinite."""
    return (values != values) | (tl.abs(values) == float("inf"))


@triton.jit
def stepped(before, climb, center, step_size, epsilon):
    """Return pixels after a step along the gradient's sign, in the box around `center` and in [0, 1]."""
    everything: tl.constexpr = tl.PropagateNan.ALL
    step = tl.full((), step_size, before.dtype)
    # Neither comparison holds for NaN, whose pixel stays: sign(NaN) is 0 in PyTorch.
    step = tl.where(climb > 0, step, tl.where(climb < 0, -step, 0.0))
    moved = before + step
    radius = tl.full((), epsilon, before.dtype)
    moved = tl.maximum(moved, center - radius, propagate_nan=everything)
    moved = tl.minimum(moved, center + radius, propagate_nan=everything)
    moved = tl.maximum(moved, 0.0, propagate_nan=everything)
    return tl.minimum(moved, 1.0, propagate_nan=everything)
