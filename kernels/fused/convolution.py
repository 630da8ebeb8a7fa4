"""A convolution of 1×1 or 3×3 with all that surrounds it, as a matrix product.

Of channels-last images, the input of a tile of output pixels (some images × some rows × all columns) at one
of the taps is a box of the input, moved by that tap; what lies outside of the image is read as zeros. At
stride 2 it is a box of every second pixel in both directions. Bias, residual and ReLU, or a ReLU's mask on
the way back, are applied before anything is stored. The gradient at the input is the same kernel, which then
reads the weights flipped and transposed; at stride 2, a tile has those of the gradient's pixels that share
their taps.

Hopper's copy engine moves the boxes; the same kernel computes the addresses itself for a GPU that has none.

The pixels are the product's second operand: then both come from shared memory as they are, and 64 channels
fill a whole matrix instruction, 64 × 256.

On an H200, 3×3 at stride 1 takes about as long as cuDNN's convolution alone, and saves the pass over memory
behind that. The other shapes, and the form without the copy engine, were not measured.
"""

from collections.abc import Sequence

import torch
import triton
from torch import Tensor
from triton.tools.tensor_descriptor import TensorDescriptor

from fastpeer.kernels.convolution import takes
from fastpeer.kernels.convolution_tiles import Problem, Tile, has_copy_engine, tile_for
from fastpeer.kernels.fused.convolution_kernel import _convolution
from fastpeer.kernels.fused.sign_bits import check_signs
from fastpeer.kernels.refusal import require

_NAME = "fused convolution"
DEPTH = 64
"""Input channels of a step of the product, at most: 128 bytes, which are copied without bank conflicts."""
LEAST_DEPTH = 16
"""What a product takes on a GPU, at least; beyond the last channel zeros are read."""


def convolution(
    x: Tensor, weight: Tensor, bias: Tensor | None = None, residual: Tensor | None = None, relu: bool = False,
    stride: int = 1, *, signs: Tensor | None = None, tile: Tile | None = None, boxes: bool | None = None,
) -> Tensor:  # fmt: skip
    """Return [relu](conv(x) [+ bias] [+ residual]), channels-last.

    Arguments and result are those of `fastpeer.kernels.convolution.convolution`. `tile` is by default what is
    expected to be fastest; `boxes` says whether the copy engine moves them: by default, where there is one.

    Raises:
        KernelRefusal: a shape, dtype or memory format does not fit: it takes images and weights that are
            channels-last, in bfloat16 or float16, 1×1 or 3×3 at stride 1 or 2, with multiples of 8 channels
            (at stride 2, of 16 into it) and sides that are powers of two up to 256.
    """
    around = {"BIAS": bias, "SUMS": residual, "MASKS": None, "SIGNS": signs}
    return _run(x, weight, around, relu, stride, tile, boxes, back=False)


def convolution_input_gradient(
    gradient: Tensor, weight: Tensor, residual: Tensor | None = None, mask: Tensor | None = None,
    stride: int = 1, *, tile: Tile | None = None, boxes: bool | None = None,
) -> Tensor:  # fmt: skip
    """Return the gradient at the input, channels-last.

    Arguments and result are those of `fastpeer.kernels.convolution.convolution_input_gradient`; `tile` and
    `boxes`: see `convolution`.

    Raises:
        KernelRefusal: see `convolution`.
    """
    around = {"BIAS": None, "SUMS": residual, "MASKS": mask, "SIGNS": None}
    return _run(gradient, weight, around, False, stride, tile, boxes, back=True)


def _run(
    x: Tensor, weight: Tensor, around: dict[str, Tensor | None], relu: bool, stride: int, tile: Tile | None,
    boxes: bool | None, back: bool,
) -> Tensor:  # fmt: skip
    apart = stride if back else 1
    shape = _check(x, weight, around, stride, back)
    boxes = has_copy_engine(x.device) if boxes is None else boxes
    tile = tile or tile_for(_problem(x, weight, stride, back), x.device, boxes)
    y = torch.empty(shape, dtype=x.dtype, device=x.device, memory_format=torch.channels_last)
    sizes = _sizes(shape, x.shape[1], stride, apart, tile)
    bias, residual, mask, signs = (y if one is None else one for one in around.values())
    packed = mask.dtype == torch.uint8
    # Signs are read and written by their address.
    maps = [x, weight, y, residual, y if packed else mask]
    *maps, map_of_mask = _boxes(maps, sizes, stride, apart, back) if boxes else list(map(_rows_of, maps))
    stripes = triton.cdiv(len(x), sizes["IMAGES"]) * triton.cdiv(sizes["HEIGHT"], sizes["ROWS"])
    with torch.cuda.device_of(x):
        _convolution[stripes, triton.cdiv(sizes["OUT"], sizes["CHANNELS"]), apart * apart](
            *maps, mask if packed else map_of_mask, bias.detach(), signs, len(x),
            **sizes, SIDE=weight.shape[2], STRIDE=stride, BACK=back, BOXES=boxes, STAGES=tile.stages,
            **{name: given is not None for name, given in around.items()}, RECTIFIES=relu, PACKED=packed,
            num_warps=tile.warps, enable_fp_fusion=True,
        )  # fmt: skip
    return y


def _problem(x: Tensor, weight: Tensor, stride: int, back: bool) -> Problem:
    (out, into, side, _), (batch, _, height, width) = weight.shape, x.shape
    apart = stride if back else 1
    dtype = str(x.dtype).removeprefix("torch.")
    return Problem(side, stride, into, out, height * apart, width * apart, batch, dtype, back)


def _sizes(shape: Sequence[int], into: int, stride: int, apart: int, tile: Tile) -> dict[str, int]:
    """Return the sizes of images and weights, and of a program's share in them, as the kernel names them."""
    out, height, width = shape[1], shape[2] // apart, shape[3] // apart
    rows = min(height, max(1, tile.pixels // width))
    reads_pairs = stride > apart
    depth = min(DEPTH, into & -into) if reads_pairs else min(DEPTH, triton.next_power_of_2(into))
    return {
        "HEIGHT": height, "WIDTH": width, "INTO": into, "OUT": out,
        "IMAGES": max(1, tile.pixels // (rows * width)), "ROWS": rows,
        "CHANNELS": min(tile.channels, triton.next_power_of_2(out)), "DEPTH": max(LEAST_DEPTH, depth),
    }  # fmt: skip


def _boxes(
    maps: Sequence[Tensor], sizes: dict[str, int], stride: int, apart: int, back: bool
) -> list[TensorDescriptor]:
    """Describe x, weights, y, residual and mask to the copy engine."""
    images, rows, width, channels, depth = (
        sizes[name] for name in ("IMAGES", "ROWS", "WIDTH", "CHANNELS", "DEPTH")
    )
    x, weight, *like_y = map(_rows_of, maps)
    batch, height, row, into = x.shape
    box = [images, rows, width]
    if stride > apart:
        # Pairs of rows and of columns, so that every second pixel is a box without gaps.
        x, box = x.view(batch, height // 2, 2, row // 2, 2 * into), [images, rows, 1, width]
    box_of_y = [images, rows, width]
    if apart == 2:
        # Pairs of rows, each of which is pairs of columns.
        like_y = [one.view(batch, height, 2 * row, 2, -1) for one in like_y]
        box_of_y = [images, rows, width, 1]
    # A row for each output channel of the forward convolution: its taps by its input channels.
    matrix = weight.reshape(len(weight), -1)
    return [
        TensorDescriptor.from_tensor(x, [*box, depth]),
        TensorDescriptor.from_tensor(matrix, [depth, channels] if back else [channels, depth]),
        *(TensorDescriptor.from_tensor(one, [*box_of_y, channels]) for one in like_y),
    ]


def _rows_of(tensor: Tensor) -> Tensor:
    """View channels-last (B, C, H, W) as (B, H, W, C)."""
    return tensor.detach().permute(0, 2, 3, 1)


def _check(
    x: Tensor, weight: Tensor, around: dict[str, Tensor | None], stride: int, back: bool
) -> tuple[int, ...]:
    """Return the result's shape."""
    shape = _check_product(x, weight, stride, back)
    bias, residual, mask, signs = around.values()
    packed = mask if mask is not None and mask.dtype == torch.uint8 else None
    for tensor in (residual, mask if packed is None else None):
        _check_like_result(tensor, shape, x)
    for tensor in (packed, signs):
        check_signs(tensor, shape, x.device, _NAME)
    if bias is not None:
        fits = bias.shape == shape[1:2] and bias.is_floating_point() and bias.device == x.device
        found = f"{tuple(bias.shape)} in {bias.dtype} on {bias.device}"
        _require(fits, f"bias must be floating ({shape[1]},) on {x.device}, got {found}")
    return shape


def _check_product(x: Tensor, weight: Tensor, stride: int, back: bool) -> tuple[int, ...]:
    described = [f"{one.dtype} {tuple(one.shape)} with strides {one.stride()}" for one in (x, weight)]
    must = (
        "images (B, C, H, W), H and W powers of two, and weights (O, I, S, S), S 1 or 3, at stride 1 or 2, "
        f"O a multiple of 8 and I of {8 * stride}, must be channels-last and both bfloat16 or both float16"
    )
    fits = takes(x, weight, stride, back)
    _require(fits, f"{must}, got {' and '.join(described)} at stride {stride}")
    out, into = weight.shape[:2][::-1] if back else weight.shape[:2]
    _require(x.shape[1] == into, f"images must be (B, {into}, H, W), got {tuple(x.shape)}")
    _require(weight.device == x.device, f"weights must be on {x.device}, got {weight.device}")
    height, width = (side * stride if back else side // stride for side in x.shape[2:])
    return len(x), out, height, width


def _check_like_result(tensor: Tensor | None, shape: tuple[int, ...], x: Tensor) -> None:
    if tensor is None:
        return
    fits = tensor.shape == shape and (tensor.dtype, tensor.device) == (x.dtype, x.device)
    fits = fits and tensor.is_contiguous(memory_format=torch.channels_last)
    found = f"{tuple(tensor.shape)} with strides {tensor.stride()} in {tensor.dtype} on {tensor.device}"
    must = f"residual and mask must be channels-last {shape} in {x.dtype} on {x.device}"
    _require(fits, f"{must}, got {found}")


def _require(fulfilled: bool, message: str) -> None:
    require(fulfilled, _NAME, message)
