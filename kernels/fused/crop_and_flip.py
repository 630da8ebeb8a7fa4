"""`crop_and_flip` in Triton: one pass."""

import torch
import triton
import triton.language as tl
from torch import Tensor

from fastpeer.kernels.counter_bits import signed
from fastpeer.kernels.crop_and_flip import PADDING
from fastpeer.kernels.fused.counter_bits import random_bits
from fastpeer.kernels.refusal import KernelRefusal

_NAME = "fused crop_and_flip"
BLOCK = 1024
# Blocks of an image are numbered by the grid's second axis, which ends here.
_LIMIT = BLOCK * 65535
_PADDING = tl.constexpr(PADDING)
_TYPES = {torch.float32: tl.float32, torch.float64: tl.float64}


def crop_and_flip(dataset: Tensor, indices: Tensor, key: int | None, dtype: torch.dtype) -> Tensor:
    """Gather, augment and convert: `fastpeer.kernels.crop_and_flip.crop_and_flip` in one launch.

    Args:
        dataset: uint8 (N, H, W, 3), contiguous.
        indices: int64 (B,), contiguous, on the data set's device. They are not checked: any outside
            [0, N) reads foreign memory.
        key: see `fastpeer.kernels.crop_and_flip.augmented`; None: no augmentation.
        dtype: float32 or float64.

    Returns:
        (B, 3, H, W) in [0, 1], channels-last.

    Raises:
        KernelRefusal: other dtypes or layouts, several devices, or images of more than 67 million numbers.
    """
    _check(dataset, indices, dtype)
    height, width, channels = dataset.shape[1:]
    result = torch.empty(len(indices), height, width, channels, dtype=dtype, device=dataset.device)
    if result.numel():
        with torch.cuda.device_of(dataset):  # type: ignore[no-untyped-call]
            _crop_and_flip[len(indices), triton.cdiv(height * width * channels, BLOCK)](
                dataset, indices, 0 if key is None else signed(key), result,
                AUGMENT=key is not None, HEIGHT=height, WIDTH=width, CHANNELS=channels,
                DTYPE=_TYPES[dtype], BLOCK=BLOCK,
                # Bit equality with PyTorch.
                num_warps=4, enable_fp_fusion=False,
            )  # fmt: skip
    return result.permute(0, 3, 1, 2)


def _check(dataset: Tensor, indices: Tensor, dtype: torch.dtype) -> None:
    if dtype not in _TYPES:
        raise KernelRefusal(f"{_NAME}: dtype must be float32 or float64, got {dtype}")
    if dataset.dtype != torch.uint8 or dataset.dim() != 4 or not dataset.is_contiguous():
        raise KernelRefusal(f"{_NAME}: data set must be uint8 (N, H, W, 3), contiguous, got {_of(dataset)}")
    if indices.dtype != torch.int64 or indices.dim() != 1 or not indices.is_contiguous():
        raise KernelRefusal(f"{_NAME}: indices must be int64 (B,), contiguous, got {_of(indices)}")
    if indices.device != dataset.device:
        raise KernelRefusal(f"{_NAME}: indices must be on {dataset.device}, got {indices.device}")
    if dataset[:1].numel() > _LIMIT:
        raise KernelRefusal(f"{_NAME}: images must be of at most {_LIMIT} numbers, got {dataset[:1].numel()}")


def _of(tensor: Tensor) -> str:
    return f"{tensor.dtype} {tuple(tensor.shape)} with strides {tensor.stride()}"


@triton.jit(do_not_specialize=["key"])
def _crop_and_flip(
    dataset,  # [N, H, W, C] uint8
    indices,  # [B] int64
    key,
    result,  # [B, H, W, C]
    AUGMENT: tl.constexpr,
    HEIGHT: tl.constexpr,
    WIDTH: tl.constexpr,
    CHANNELS: tl.constexpr,
    DTYPE: tl.constexpr,
    BLOCK: tl.constexpr,
):
    image = tl.program_id(0).to(tl.int64)
    places = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    within = places < HEIGHT * WIDTH * CHANNELS
    row = places // CHANNELS // WIDTH
    column = places // CHANNELS % WIDTH
    index = tl.load(indices + image)
    if AUGMENT:
        bits = random_bits(key, index)
        if bits & 1 != 0:
            column = WIDTH - 1 - column
        row += ((bits >> 1 & 0xFFFFF) % (2 * _PADDING + 1)).to(tl.int32) - _PADDING
        column += ((bits >> 21 & 0xFFFFF) % (2 * _PADDING + 1)).to(tl.int32) - _PADDING
    inside = within & (row >= 0) & (row < HEIGHT) & (column >= 0) & (column < WIDTH)
    sources = index * (HEIGHT * WIDTH * CHANNELS) + (row * WIDTH + column) * CHANNELS + places % CHANNELS
    pixels = tl.load(dataset + sources, mask=inside, other=0).to(DTYPE)
    numbers = tl.div_rn(pixels, 255.0) if pixels.dtype == tl.float32 else pixels / 255.0
    tl.store(result + image * (HEIGHT * WIDTH * CHANNELS) + places, numbers, mask=within)
