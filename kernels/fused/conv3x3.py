"""A 3×3 convolution with all that surrounds it, as a matrix product that the bulk tensor copy engine feeds.

Of channels-last images, the input of a tile of output pixels (some images × some rows × all columns) at one
of the nine taps is a box of the input, moved by that tap; what lies outside of the image is read as zeros.
Bias, residual and ReLU, or a ReLU's mask on the way back, are applied before anything is stored. The gradient
at the input is the same kernel over flipped and transposed weights.

The pixels are the product's second operand: then both come from shared memory as they are, and 64 channels
fill a whole matrix instruction, 64 × 256.

Nothing uses it yet but benchmarks/speed/primitives.py, which is to show where it beats cuDNN.
"""

from dataclasses import dataclass

import torch
import triton
import triton.language as tl
from torch import Tensor
from triton.tools.tensor_descriptor import TensorDescriptor

from fastpeer.kernels.refusal import KernelRefusal


@dataclass(frozen=True)
class Tile:
    """What one program computes, and how.

    Attributes:
        pixels: of the output; a power of two.
        channels: of the output; a power of two.
        warps, stages: see Triton.
    """

    pixels: int = 128
    channels: int = 64
    warps: int = 4
    stages: int = 4

    def __str__(self) -> str:
        return f"{self.pixels} × {self.channels}, {self.warps} warps, {self.stages} stages"


TILES = (
    Tile(128, 64, 4, 4),
    Tile(128, 64, 4, 3),
    Tile(256, 64, 4, 3),
    Tile(128, 128, 8, 4),
    Tile(128, 128, 8, 3),
    Tile(256, 128, 8, 3),
)
"""Those worth measuring on Hopper."""
DEPTH = 64
"""Input channels of a step of the product, at most: 128 bytes, which are copied without bank conflicts."""


class Taps:
    """A convolution's weights as the kernel takes them: a matrix for each of the nine taps.

    Args:
        weight: (O, I, 3, 3), bfloat16 or float16.

    Attributes:
        forward: (9, O, I).
        back: (9, I, O), flipped and transposed.
    """

    def __init__(self, weight: Tensor) -> None:
        _require(
            weight.dim() == 4 and weight.shape[2:] == (3, 3),
            f"weights (O, I, 3, 3), got {tuple(weight.shape)}",
        )
        out, into = weight.shape[:2]
        self.forward = weight.detach().permute(2, 3, 0, 1).reshape(9, out, into).contiguous()
        self.back = weight.detach().flip(2, 3).permute(2, 3, 1, 0).reshape(9, into, out).contiguous()


def convolution(
    x: Tensor,
    taps: Taps,
    bias: Tensor | None = None,
    residual: Tensor | None = None,
    relu: bool = False,
    tile: Tile | None = None,
) -> Tensor:
    """Return [relu](conv(x) [+ bias] [+ residual]), channels-last.

    Arguments and result are those of `fastpeer.kernels.conv3x3.convolution`, but for the weights.

    Raises:
        KernelRefusal: a shape, dtype or memory format does not fit: it takes channels-last images whose sides
            are powers of two, in bfloat16 or float16, with multiples of 8 channels.
    """
    return _run(x, taps.forward, bias, residual, None, relu, tile or Tile())


def convolution_input_gradient(
    gradient: Tensor,
    taps: Taps,
    residual: Tensor | None = None,
    mask: Tensor | None = None,
    tile: Tile | None = None,
) -> Tensor:
    """Return the gradient at the input, channels-last.

    Arguments and result are those of `fastpeer.kernels.conv3x3.convolution_input_gradient`, but for the
    weights.

    Raises:
        KernelRefusal: see `convolution`.
    """
    return _run(gradient, taps.back, None, residual, mask, False, tile or Tile())


def _run(
    x: Tensor, taps: Tensor, bias: Tensor | None, residual: Tensor | None, mask: Tensor | None, relu: bool,
    tile: Tile,
) -> Tensor:  # fmt: skip
    _check(x, taps, bias, residual, mask)
    batch, into, height, width = x.shape
    out = taps.shape[1]
    rows = min(height, max(1, tile.pixels // width))
    images = max(1, tile.pixels // (rows * width))
    channels, depth = (
        min(tile.channels, triton.next_power_of_2(out)),
        min(DEPTH, triton.next_power_of_2(into)),
    )
    y = torch.empty(batch, height, width, out, dtype=x.dtype, device=x.device)

    def box(tensor: Tensor, channels: int) -> TensorDescriptor:
        return TensorDescriptor.from_tensor(tensor, [images, rows, width, channels])

    def box_like_result(tensor: Tensor | None) -> TensorDescriptor:
        return box(y if tensor is None else _rows_of(tensor), channels)

    grid = (triton.cdiv(batch, images) * triton.cdiv(height, rows), triton.cdiv(out, channels))
    with torch.cuda.device_of(x):
        _convolution[grid](
            box(_rows_of(x), depth),
            TensorDescriptor.from_tensor(taps.view(9 * out, into), [channels, depth]),
            box(y, channels),
            box_like_result(residual),
            box_like_result(mask),
            y if bias is None else bias.detach(),
            HEIGHT=height, WIDTH=width, INTO=into, OUT=out,
            IMAGES=images, ROWS=rows, CHANNELS=channels, DEPTH=depth, STAGES=tile.stages,
            BIAS=bias is not None, SUMS=residual is not None, RECTIFIES=relu, MASKS=mask is not None,
            num_warps=tile.warps, enable_fp_fusion=True,
        )  # fmt: skip
    return y.permute(0, 3, 1, 2)


def _rows_of(tensor: Tensor) -> Tensor:
    """View channels-last (B, C, H, W) as (B, H, W, C)."""
    return tensor.detach().permute(0, 2, 3, 1)


def _check(
    x: Tensor, taps: Tensor, bias: Tensor | None, residual: Tensor | None, mask: Tensor | None
) -> None:
    _require(x.dtype in (torch.bfloat16, torch.float16), f"bfloat16 or float16, got {x.dtype}")
    _require(
        taps.dtype == x.dtype and taps.device == x.device,
        f"weights in {x.dtype} on {x.device}, got {taps.dtype} on {taps.device}",
    )
    _require(
        x.dim() == 4 and x.shape[1] == taps.shape[2],
        f"images (B, {taps.shape[2]}, H, W), got {tuple(x.shape)}",
    )
    batch, into, *sides = x.shape
    powers = all(side == triton.next_power_of_2(side) for side in sides)
    _require(powers and batch > 0, f"images whose sides are powers of two, got {tuple(x.shape)}")
    out = taps.shape[1]
    # The copy engine wants every row of a box to begin at a multiple of 16 bytes.
    _require(into % 8 == 0 and out % 8 == 0, f"multiples of 8 channels, got {into} and {out}")
    for one in (residual, mask):
        if one is not None:
            fits = one.shape == (batch, out, *sides) and (one.dtype, one.device) == (x.dtype, x.device)
            wanted = f"residual and mask ({batch}, {out}, {sides[0]}, {sides[1]}) in {x.dtype} on {x.device}"
            _require(fits, f"{wanted}, got {tuple(one.shape)} in {one.dtype} on {one.device}")
    if bias is not None:
        fits = bias.shape == (out,) and bias.is_floating_point() and bias.device == x.device
        found = f"{tuple(bias.shape)} in {bias.dtype} on {bias.device}"
        _require(fits, f"a floating bias ({out},) on {x.device}, got {found}")
    given = [one for one in (x, residual, mask) if one is not None]
    layout = torch.channels_last
    _require(
        all(one.is_contiguous(memory_format=layout) for one in given), "channels-last tensors, got others"
    )


def _require(fulfilled: bool, what: str) -> None:
    if not fulfilled:
        raise KernelRefusal(f"the fused convolution needs {what}")


@triton.jit
def _convolution(
    x,  # box (IMAGES, ROWS, WIDTH, DEPTH)
    taps,  # box (CHANNELS, DEPTH) of (9 · OUT, INTO)
    y,  # box (IMAGES, ROWS, WIDTH, CHANNELS)
    residual,  # like y; only where SUMS
    mask,  # like y; only where MASKS
    bias,  # (OUT,), only where BIAS
    HEIGHT: tl.constexpr, WIDTH: tl.constexpr, INTO: tl.constexpr, OUT: tl.constexpr,
    IMAGES: tl.constexpr, ROWS: tl.constexpr, CHANNELS: tl.constexpr, DEPTH: tl.constexpr,
    STAGES: tl.constexpr,
    BIAS: tl.constexpr, SUMS: tl.constexpr, RECTIFIES: tl.constexpr, MASKS: tl.constexpr,
):  # fmt: skip
    PIXELS: tl.constexpr = IMAGES * ROWS * WIDTH
    STRIPES: tl.constexpr = (HEIGHT + ROWS - 1) // ROWS
    CHUNKS: tl.constexpr = (INTO + DEPTH - 1) // DEPTH
    image = tl.program_id(0) // STRIPES * IMAGES
    row = tl.program_id(0) % STRIPES * ROWS
    first = tl.program_id(1) * CHANNELS
    total = tl.zeros((CHANNELS, PIXELS), tl.float32)
    for step in tl.range(0, 9 * CHUNKS, num_stages=STAGES):
        tap = step // CHUNKS
        channel = step % CHUNKS * DEPTH
        pixels = x.load([image, row + tap // 3 - 1, tap % 3 - 1, channel]).reshape(PIXELS, DEPTH)
        # Beyond a tap's last output channel these are the next tap's weights; what they make is not stored.
        total = tl.dot(taps.load([tap * OUT + first, channel]), pixels.T, total)
    out = total.T
    if BIAS:
        column = first + tl.arange(0, CHANNELS)
        out += tl.load(bias + column, mask=column < OUT, other=0.0).to(tl.float32)[None, :]
    if SUMS:
        out += residual.load([image, row, 0, first]).reshape(PIXELS, CHANNELS).to(tl.float32)
    if RECTIFIES:
        out = tl.maximum(out, 0.0, propagate_nan=tl.PropagateNan.ALL)
    if MASKS:
        open_ = mask.load([image, row, 0, first]).reshape(PIXELS, CHANNELS).to(tl.float32) > 0
        out = tl.where(open_, out, 0.0)
    y.store([image, row, 0, first], out.to(y.dtype).reshape(IMAGES, ROWS, WIDTH, CHANNELS))
