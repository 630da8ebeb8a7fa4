"""A 3×3 convolution with all that surrounds it, as a matrix product that the bulk tensor copy engine feeds.

Of channels-last images, the input of a tile of output pixels (some images × some rows × all columns) at one
of the nine taps is a box of the input, moved by that tap; what lies outside of the image is read as zeros.
Bias, residual and ReLU, or a ReLU's mask on the way back, are applied before anything is stored. The gradient
at the input is the same kernel, which then reads the weights flipped and transposed.

The pixels are the product's second operand: then both come from shared memory as they are, and 64 channels
fill a whole matrix instruction, 64 × 256.

On an H200 it takes about as long as cuDNN's convolution alone, and saves the pass over memory behind that.
"""

from dataclasses import dataclass

import torch
import triton
import triton.language as tl
from torch import Tensor
from triton.tools.tensor_descriptor import TensorDescriptor

from fastpeer.kernels.conv3x3 import takes
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
LARGE_PLANE = 16
"""Sides of an image from which on three stages are faster than four."""
LEAST_DEPTH = 16
"""What a product takes on a GPU, at least; beyond the last channel the copy engine fills in zeros."""


def convolution(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    residual: Tensor | None = None,
    relu: bool = False,
    tile: Tile | None = None,
) -> Tensor:
    """Return [relu](conv(x) [+ bias] [+ residual]), channels-last.

    Arguments and result are those of `fastpeer.kernels.conv3x3.convolution`.

    Raises:
        KernelRefusal: a shape, dtype or memory format does not fit: it takes images and weights that are
            channels-last, in bfloat16 or float16, with multiples of 8 channels and sides that are powers of
            two.
    """
    return _run(x, weight, bias, residual, None, relu, tile, back=False)


def convolution_input_gradient(
    gradient: Tensor,
    weight: Tensor,
    residual: Tensor | None = None,
    mask: Tensor | None = None,
    tile: Tile | None = None,
) -> Tensor:
    """Return the gradient at the input, channels-last.

    Arguments and result are those of `fastpeer.kernels.conv3x3.convolution_input_gradient`.

    Raises:
        KernelRefusal: see `convolution`.
    """
    return _run(gradient, weight, None, residual, mask, False, tile, back=True)


def _run(
    x: Tensor, weight: Tensor, bias: Tensor | None, residual: Tensor | None, mask: Tensor | None, relu: bool,
    tile: Tile | None, back: bool,
) -> Tensor:  # fmt: skip
    _check(x, weight, back, bias, residual, mask)
    tile = tile or fastest_tile(x)
    sizes = _sizes(x, weight.shape[1 if back else 0], tile)
    height, width, out = (sizes[name] for name in ("HEIGHT", "WIDTH", "OUT"))
    y = torch.empty(len(x), height, width, out, dtype=x.dtype, device=x.device)
    stripes = triton.cdiv(len(x), sizes["IMAGES"]) * triton.cdiv(height, sizes["ROWS"])
    with torch.cuda.device_of(x):
        _convolution[stripes, triton.cdiv(out, sizes["CHANNELS"])](
            *_boxes(x, weight, y, residual, mask, sizes, back),
            y if bias is None else bias.detach(),
            **sizes, BACK=back, STAGES=tile.stages,
            BIAS=bias is not None, SUMS=residual is not None, RECTIFIES=relu, MASKS=mask is not None,
            num_warps=tile.warps, enable_fp_fusion=True,
        )  # fmt: skip
    return y.permute(0, 3, 1, 2)


def fastest_tile(x: Tensor) -> Tile:
    """Return the tile that took least time on an H200, at the stages of ResNet-18."""
    return Tile(128, 128, 8, 3 if x.shape[2] >= LARGE_PLANE else 4)


def _sizes(x: Tensor, out: int, tile: Tile) -> dict[str, int]:
    """Return the sizes of images and weights, and of a program's share in them, as the kernel names them."""
    into, height, width = x.shape[1:]
    rows = min(height, max(1, tile.pixels // width))
    return {
        "HEIGHT": height, "WIDTH": width, "INTO": into, "OUT": out,
        "IMAGES": max(1, tile.pixels // (rows * width)), "ROWS": rows,
        "CHANNELS": min(tile.channels, triton.next_power_of_2(out)),
        "DEPTH": min(DEPTH, max(LEAST_DEPTH, triton.next_power_of_2(into))),
    }  # fmt: skip


def _boxes(
    x: Tensor, weight: Tensor, y: Tensor, residual: Tensor | None, mask: Tensor | None,
    sizes: dict[str, int], back: bool,
) -> list[TensorDescriptor]:  # fmt: skip
    """Describe x, weights, y, residual and mask to the copy engine; y stands in for what is missing."""
    pixels = [sizes[name] for name in ("IMAGES", "ROWS", "WIDTH")]
    channels, depth = sizes["CHANNELS"], sizes["DEPTH"]
    # A row for each output channel of the forward convolution: nine taps by its input channels.
    matrix = _rows_of(weight).reshape(len(weight), -1)
    like_y = [y, *(y if tensor is None else _rows_of(tensor) for tensor in (residual, mask))]
    return [
        TensorDescriptor.from_tensor(_rows_of(x), [*pixels, depth]),
        TensorDescriptor.from_tensor(matrix, [depth, channels] if back else [channels, depth]),
        *(TensorDescriptor.from_tensor(tensor, [*pixels, channels]) for tensor in like_y),
    ]


def _rows_of(tensor: Tensor) -> Tensor:
    """View channels-last (B, C, H, W) as (B, H, W, C)."""
    return tensor.detach().permute(0, 2, 3, 1)


def _check(
    x: Tensor, weight: Tensor, back: bool, bias: Tensor | None, residual: Tensor | None, mask: Tensor | None
) -> None:
    _check_product(x, weight, back)
    shape = (len(x), weight.shape[1 if back else 0], *x.shape[2:])
    for tensor in (residual, mask):
        _check_like_result(tensor, shape, x)
    if bias is not None:
        fits = bias.shape == shape[1:2] and bias.is_floating_point() and bias.device == x.device
        found = f"{tuple(bias.shape)} in {bias.dtype} on {bias.device}"
        _require(fits, f"bias must be floating ({shape[1]},) on {x.device}, got {found}")


def _check_product(x: Tensor, weight: Tensor, back: bool) -> None:
    described = [f"{one.dtype} {tuple(one.shape)} with strides {one.stride()}" for one in (x, weight)]
    must = (
        "images (B, C, H, W), H and W powers of two, and weights (O, I, 3, 3), O and I multiples of 8, must "
        "be channels-last and both bfloat16 or both float16"
    )
    _require(takes(x, weight), f"{must}, got {' and '.join(described)}")
    into = weight.shape[0 if back else 1]
    _require(x.shape[1] == into, f"images must be (B, {into}, H, W), got {tuple(x.shape)}")
    _require(weight.device == x.device, f"weights must be on {x.device}, got {weight.device}")


def _check_like_result(tensor: Tensor | None, shape: tuple[int, ...], x: Tensor) -> None:
    if tensor is None:
        return
    fits = tensor.shape == shape and (tensor.dtype, tensor.device) == (x.dtype, x.device)
    fits = fits and tensor.is_contiguous(memory_format=torch.channels_last)
    found = f"{tuple(tensor.shape)} with strides {tensor.stride()} in {tensor.dtype} on {tensor.device}"
    must = f"residual and mask must be channels-last {shape} in {x.dtype} on {x.device}"
    _require(fits, f"{must}, got {found}")


def _require(fulfilled: bool, message: str) -> None:
    require(fulfilled, "fused convolution", message)


@triton.jit
def _convolution(
    x,  # box (IMAGES, ROWS, WIDTH, DEPTH)
    weight,  # box (CHANNELS, DEPTH) of (OUT, 9 · INTO); BACK: box (DEPTH, CHANNELS) of (INTO, 9 · OUT)
    y,  # box (IMAGES, ROWS, WIDTH, CHANNELS)
    residual,  # like y; only where SUMS
    mask,  # like y; only where MASKS
    bias,  # (OUT,), only where BIAS
    HEIGHT: tl.constexpr, WIDTH: tl.constexpr, INTO: tl.constexpr, OUT: tl.constexpr,
    IMAGES: tl.constexpr, ROWS: tl.constexpr, CHANNELS: tl.constexpr, DEPTH: tl.constexpr,
    BACK: tl.constexpr, STAGES: tl.constexpr,
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
        # Beyond a tap's last channel these are the next tap's weights: they meet pixels that are read as
        # zeros, or what they make is not stored.
        if BACK:
            taps = weight.load([channel, (8 - tap) * OUT + first]).T
        else:
            taps = weight.load([first, tap * INTO + channel])
        total = tl.dot(taps, pixels.T, total)
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
