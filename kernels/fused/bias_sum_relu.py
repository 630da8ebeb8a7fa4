"""What follows a convolution whose BatchNorm is folded into it, in one pass over its result."""

import torch
import triton
import triton.language as tl
from torch import Tensor

from fastpeer.kernels.refusal import KernelRefusal

_NAME = "fused convolution epilogue"
_BLOCK = 1024
"""Values of a program: eight for each thread, so that bfloat16 moves in 16 bytes at a time."""
_MOST = (1 << 31) - _BLOCK
"""The most values of which those of the last block can still be numbered in 32 bits."""


def bias_sum_relu(out: Tensor, bias: Tensor, residual: Tensor | None, relu: bool) -> Tensor:
    """Overwrite `out` with [relu](out + bias [+ residual]), and return it.

    Arguments and result are those of `fastpeer.kernels.bias_sum_relu.bias_sum_relu`. A residual of another
    memory format is converted first, which is a launch more.

    Raises:
        KernelRefusal: a shape, dtype, memory format or device does not fit.
    """
    layout = _layout(out)
    _check(out, bias, residual)
    other = out if residual is None else residual.detach().contiguous(memory_format=layout)
    with torch.cuda.device_of(out):
        _bias_sum_relu[(triton.cdiv(out.numel(), _BLOCK),)](
            out,
            bias.detach().contiguous(),
            other,
            out.numel(),
            out.shape[1],
            1 if layout == torch.channels_last else out.shape[2] * out.shape[3],
            SUMS=residual is not None,
            RECTIFIES=relu,
            BLOCK=_BLOCK,
            num_warps=4,
            enable_fp_fusion=False,
        )
    return out


def _layout(out: Tensor) -> torch.memory_format:
    """Return which of the two memory formats `out` has; of planes of one pixel it has both."""
    for layout in (torch.channels_last, torch.contiguous_format):
        if out.dim() == 4 and out.is_contiguous(memory_format=layout):
            return layout
    raise KernelRefusal(
        f"{_NAME}: out must be (B, C, H, W) without gaps, got {tuple(out.shape)} with strides {out.stride()}"
    )


def _check(out: Tensor, bias: Tensor, residual: Tensor | None) -> None:
    given = [out, bias] if residual is None else [out, bias, residual]
    fits = bias.shape == out.shape[1:2] and (residual is None or residual.shape == out.shape)
    if not fits or not all(tensor.is_floating_point() for tensor in given):
        described = ", ".join(f"{tensor.dtype} {tuple(tensor.shape)}" for tensor in given)
        raise KernelRefusal(
            f"{_NAME}: out, bias and residual must be floating (B, C, H, W), (C,) and (B, C, H, W), "
            f"got {described}"
        )
    if not 0 < out.numel() <= _MOST:
        raise KernelRefusal(f"{_NAME}: out must have 1 to {_MOST} values, got {out.numel()}")
    devices = {tensor.device for tensor in given}
    if len(devices) > 1:
        raise KernelRefusal(f"{_NAME}: all tensors must be on one device, got {sorted(map(str, devices))}")


@triton.jit
def _bias_sum_relu(
    out,
    bias,  # (channels,)
    residual,  # like out in memory; only where SUMS
    count,
    channels,
    stride,  # of a channel in out
    SUMS: tl.constexpr,
    RECTIFIES: tl.constexpr,
    BLOCK: tl.constexpr,
):
    exact: tl.constexpr = tl.float64 if out.dtype.element_ty == tl.float64 else tl.float32
    place = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    present = place < count
    channel = (place // stride) % channels
    value = tl.load(out + place, mask=present).to(exact)
    value += tl.load(bias + channel, mask=present).to(exact)
    if SUMS:
        value += tl.load(residual + place, mask=present).to(exact)
    if RECTIFIES:
        value = tl.maximum(value, 0.0, propagate_nan=tl.PropagateNan.ALL)
    tl.store(out + place, value.to(out.dtype.element_ty), mask=present)
