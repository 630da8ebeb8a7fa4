"""`Fold` in Triton: all layers in one launch, or one for each combination of dtypes."""

from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import torch
import triton
import triton.language as tl
from torch import Tensor

from fastpeer.kernels.fold import FoldedLayer, check_layer
from fastpeer.kernels.refusal import KernelRefusal

BLOCK = 1024
_LIMIT = 2**31
_TRITON_TYPES = {
    torch.bfloat16: tl.bfloat16,
    torch.float16: tl.float16,
    torch.float32: tl.float32,
    torch.float64: tl.float64,
}


class Fold:
    """As `fastpeer.kernels.fold.Fold`, for tensors on one CUDA device.

    The tensors' addresses are written to the device once. A call launches kernels and does nothing
    else on the device, so it can be captured into a CUDA graph.

    Args:
        layers: all of them; their tensors are changed in place, never replaced.

    Raises:
        KernelRefusal: a layer's tensors do not fit together; a weight and its buffer are not laid out
            alike, output channel after output channel without gaps; the layers lie on several
            devices; one has 2³¹ weights or more.
    """

    def __init__(self, layers: Sequence[FoldedLayer]) -> None:
        self.layers = tuple(layers)
        for layer in layers:
            check_layer(layer)
            _check_layout(layer)
        if len({layer.folded_bias.device for layer in layers}) > 1:
            raise KernelRefusal("fused fold: all layers must be on one device")
        self._addresses = [_addresses(layer) for layer in layers]
        grouped: dict[tuple[torch.dtype, ...], list[FoldedLayer]] = defaultdict(list)
        for layer in layers:
            grouped[layer.dtype, layer.folded_weight.dtype, layer.folded_bias.dtype].append(layer)
        self._launches = [_Launch.of(dtypes, some) for dtypes, some in grouped.items()]

    def __call__(self) -> None:
        """Write each layer's `folded_weight` and `folded_bias`.

        Raises:
            KernelRefusal: a tensor was moved to other memory, by `.data = …` or `.to(…)`.
        """
        if self._addresses != [_addresses(layer) for layer in self.layers]:
            raise KernelRefusal("fused fold: a layer's memory was replaced: build the fold anew")
        for launch in self._launches:
            launch()


@dataclass(frozen=True)
class _Launch:
    """Layers of the same dtypes, and how the kernel finds them.

    Attributes:
        dtypes: of the sources, the folded weights and the folded biases.
        layers: (L, 9) addresses of a layer's tensors (0: none), and weights of one output channel.
        epsilons: float64 (L,).
        blocks: (P, 3) layer, output channel and first weight of each program.
    """

    dtypes: tuple[torch.dtype, ...]
    layers: Tensor
    epsilons: Tensor
    blocks: Tensor

    @classmethod
    def of(cls, dtypes: tuple[torch.dtype, ...], layers: Sequence[FoldedLayer]) -> "_Launch":
        device = layers[0].folded_bias.device
        rows = [[*_addresses(layer), _weights_per_channel(layer.folded_weight)] for layer in layers]
        blocks = [(number, *block) for number, layer in enumerate(layers) for block in _blocks(layer)]
        epsilons = [layer.eps for layer in layers]
        return cls(
            dtypes,
            torch.tensor(rows, dtype=torch.int64).to(device),
            torch.tensor(epsilons, dtype=torch.float64).to(device),
            torch.tensor(blocks, dtype=torch.int32).to(device),
        )

    def __call__(self) -> None:
        source, weight, bias = (_TRITON_TYPES[dtype] for dtype in self.dtypes)
        with torch.cuda.device_of(self.layers):  # type: ignore[no-untyped-call]
            _fold[(len(self.blocks),)](
                self.layers, self.epsilons, self.blocks,
                SOURCE=source, WEIGHT=weight, BIAS=bias, BLOCK=BLOCK,
                # Each operation rounded by itself, as PyTorch does.
                num_warps=4, enable_fp_fusion=False,
            )  # fmt: skip


@triton.jit
def _fold(
    layers,  # [L, 9] int64
    epsilons,  # [L] float64
    blocks,  # [P, 3] int32
    SOURCE: tl.constexpr,
    WEIGHT: tl.constexpr,
    BIAS: tl.constexpr,
    BLOCK: tl.constexpr,
):
    block = blocks + 3 * tl.program_id(0).to(tl.int64)
    layer = tl.load(block).to(tl.int64)
    channel = tl.load(block + 1).to(tl.int64)
    first = tl.load(block + 2).to(tl.int64)
    row = layers + 9 * layer
    weight = tl.load(row)
    mean = tl.load(row + 4)
    gamma = _parameter(tl.load(row + 2), channel, 1.0, SOURCE)
    variance = _parameter(tl.load(row + 5), channel, 1.0, SOURCE)
    # Without a BatchNorm, 1/√1.
    epsilon = tl.where(mean != 0, tl.load(epsilons + layer), 0.0).to(SOURCE)
    scale = _quotient_by_root(gamma, variance + epsilon)
    if first == 0:
        bias = _parameter(tl.load(row + 1), channel, 0.0, SOURCE)
        beta = _parameter(tl.load(row + 3), channel, 0.0, SOURCE)
        shift = beta + (bias - _parameter(mean, channel, 0.0, SOURCE)) * scale
        folded_bias = tl.load(row + 7).to(tl.pointer_type(BIAS)) + channel
        tl.store(folded_bias, _rounded(shift, folded_bias))
    width = tl.load(row + 8)
    columns = first + tl.arange(0, BLOCK)
    places = channel * width + columns
    readable = columns < tl.where(weight != 0, width, 0)
    values = tl.load(weight.to(tl.pointer_type(SOURCE)) + places, mask=readable, other=1.0)
    folded = tl.load(row + 6).to(tl.pointer_type(WEIGHT)) + places
    tl.store(folded, _rounded(values * scale, folded), mask=columns < width)


@triton.jit
def _parameter(address, channel, missing: tl.constexpr, SOURCE: tl.constexpr):
    return tl.load(address.to(tl.pointer_type(SOURCE)) + channel, mask=address != 0, other=missing)


@triton.jit
def _quotient_by_root(numerator, square):
    # float32 has to be told to round to the nearest.
    if square.dtype == tl.float32:
        return tl.div_rn(numerator, tl.sqrt_rn(square))
    return numerator / tl.sqrt(square)


@triton.jit
def _rounded(values, target):
    # From float64 to bfloat16 by way of float32, as PyTorch does.
    if target.dtype.element_ty == tl.bfloat16:
        values = values.to(tl.float32)
    return values.to(target.dtype.element_ty)


def _addresses(layer: FoldedLayer) -> list[int]:
    tensors = [*layer.sources(), layer.folded_weight, layer.folded_bias]
    return [0 if tensor is None else tensor.data_ptr() for tensor in tensors]


def _weights_per_channel(weight: Tensor) -> int:
    return weight[:1].numel()


def _blocks(layer: FoldedLayer) -> Iterable[tuple[int, int]]:
    for channel in range(len(layer.folded_bias)):
        for first in range(0, _weights_per_channel(layer.folded_weight), BLOCK):
            yield channel, first


def _check_layout(layer: FoldedLayer) -> None:
    if not 0 < layer.folded_weight.numel() < _LIMIT:
        raise KernelRefusal(
            f"fused fold: weights of a layer must be 1 to 2^31 - 1, got {layer.folded_weight.numel()}"
        )
    of_channels = [tensor for tensor in (*layer.sources()[1:], layer.folded_bias) if tensor is not None]
    if not all(tensor.is_contiguous() for tensor in of_channels):
        raise KernelRefusal("fused fold: biases, parameters and statistics of a BatchNorm must be contiguous")
    weights = [tensor for tensor in (layer.weight, layer.folded_weight) if tensor is not None]
    if len({_strides(weight) for weight in weights}) > 1 or not _channel_after_channel(layer.folded_weight):
        raise KernelRefusal(
            "fused fold: a weight and its buffer must have the same strides, with one output channel after"
            f" another and no gaps, got {' and '.join(str(tensor.stride()) for tensor in weights)}"
        )


def _strides(weight: Tensor) -> tuple[int, ...]:
    """Return the strides, but for those of dimensions of size 1, which mean nothing."""
    return tuple(stride for stride, size in zip(weight.stride(), weight.shape, strict=True) if size > 1)


def _channel_after_channel(weight: Tensor) -> bool:
    if len(weight) > 1 and weight.stride(0) != _weights_per_channel(weight):
        return False
    expected = 1
    for stride, size in sorted(zip(weight.stride()[1:], weight.shape[1:], strict=True)):
        if size > 1 and stride != expected:
            return False
        expected *= size
    return True
