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

from fastpeer.kernels.refusal import require


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
LEAST_DEPTH = 16
"""What a product takes on a GPU, at least; beyond the last channel the copy engine fills in zeros."""


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
            f"weights must be (O, I, 3, 3), got {tuple(weight.shape)}",
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
    sizes = _sizes(x, taps, tile)
    height, width, out = (sizes[name] for name in ("HEIGHT", "WIDTH", "OUT"))
    y = torch.empty(len(x), height, width, out, dtype=x.dtype, device=x.device)
    stripes = triton.cdiv(len(x), sizes["IMAGES"]) * triton.cdiv(height, sizes["ROWS"])
    with torch.cuda.device_of(x):
        _convolution[stripes, triton.cdiv(out, sizes["CHANNELS"])](
            *_boxes(x, taps, y, residual, mask, sizes),
            y if bias is None else bias.detach(),
            **sizes, STAGES=tile.stages,
            BIAS=bias is not None, SUMS=residual is not None, RECTIFIES=relu, MASKS=mask is not None,
            num_warps=tile.warps, enable_fp_fusion=True,
        )  # fmt: skip
    return y.permute(0, 3, 1, 2)


def _sizes(x: Tensor, taps: Tensor, tile: Tile) -> dict[str, int]:
    """Return the sizes of images and weights, and of a program's share in them, as the kernel names them."""
    into, height, width = x.shape[1:]
    out = taps.shape[1]
    rows = min(height, max(1, tile.pixels // width))
    return {
        "HEIGHT": height, "WIDTH": width, "INTO": into, "OUT": out,
        "IMAGES": max(1, tile.pixels // (rows * width)), "ROWS": rows,
        "CHANNELS": min(tile.channels, triton.next_power_of_2(out)),
        "DEPTH": min(DEPTH, max(LEAST_DEPTH, triton.next_power_of_2(into))),
    }  # fmt: skip


def _boxes(
    x: Tensor, taps: Tensor, y: Tensor, residual: Tensor | None, mask: Tensor | None, sizes: dict[str, int]
) -> list[TensorDescriptor]:
    """Describe x, taps, y, residual and mask to the copy engine; y stands in for what is missing."""
    pixels = [sizes[name] for name in ("IMAGES", "ROWS", "WIDTH")]
    channels, depth = sizes["CHANNELS"], sizes["DEPTH"]
    matrix = taps.view(9 * sizes["OUT"], sizes["INTO"])
    like_y = [y, *(y if tensor is None else _rows_of(tensor) for tensor in (residual, mask))]
    return [
        TensorDescriptor.from_tensor(_rows_of(x), [*pixels, depth]),
        TensorDescriptor.from_tensor(matrix, [channels, depth]),
        *(TensorDescriptor.from_tensor(tensor, [*pixels, channels]) for tensor in like_y),
    ]


def _rows_of(tensor: Tensor) -> Tensor:
    """View channels-last (B, C, H, W) as (B, H, W, C)."""
    return tensor.detach().permute(0, 2, 3, 1)


def _check(
    x: Tensor, taps: Tensor, bias: Tensor | None, residual: Tensor | None, mask: Tensor | None
) -> None:
    _check_images(x, taps)
    batch, out = len(x), taps.shape[1]
    shape = (batch, out, *x.shape[2:])
    like_result = [tensor for tensor in (residual, mask) if tensor is not None]
    for tensor in like_result:
        fits = tensor.shape == shape and (tensor.dtype, tensor.device) == (x.dtype, x.device)
        must = f"residual and mask must be {shape} in {x.dtype} on {x.device}"
        _require(fits, f"{must}, got {tuple(tensor.shape)} in {tensor.dtype} on {tensor.device}")
    if bias is not None:
        fits = bias.shape == (out,) and bias.is_floating_point() and bias.device == x.device
        found = f"{tuple(bias.shape)} in {bias.dtype} on {bias.device}"
        _require(fits, f"bias must be floating ({out},) on {x.device}, got {found}")
    for tensor in (x, *like_result):
        fits = tensor.is_contiguous(memory_format=torch.channels_last)
        _require(fits, f"all images must be channels-last, got strides {tensor.stride()}")


def _check_images(x: Tensor, taps: Tensor) -> None:
    _require(x.dtype in (torch.bfloat16, torch.float16), f"images must be bfloat16 or float16, got {x.dtype}")
    _require(
        taps.dtype == x.dtype and taps.device == x.device,
        f"weights must be in {x.dtype} on {x.device}, got {taps.dtype} on {taps.device}",
    )
    out, into = taps.shape[1:]
    found = f"got {tuple(x.shape)}"
    _require(x.dim() == 4 and x.shape[1] == into, f"images must be (B, {into}, H, W), {found}")
    powers = all(side == triton.next_power_of_2(side) for side in x.shape[2:])
    _require(powers and len(x) > 0, f"the sides of the images must be powers of two, {found}")
    # The copy engine wants every row of a box to begin at a multiple of 16 bytes.
    _require(into % 8 == 0 and out % 8 == 0, f"channels must be multiples of 8, got {into} and {out}")


def _require(fulfilled: bool, message: str) -> None:
    require(fulfilled, "fused convolution", message)


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
