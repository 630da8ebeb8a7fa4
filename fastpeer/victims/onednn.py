"""Convolutions of an attack on the CPU: oneDNN's, and matrix products where planes are small."""

from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional as F

from fastpeer.victims.convolution import PlainConvolutions
from fastpeer.victims.folding import FoldedConv2d

Direction = Literal["forward", "backward"]
SMALL_PLANE = 16
"""Pixels of an output plane up to which one bf16 matrix product is faster than oneDNN's own way."""


def onednn_supports(dtype: torch.dtype) -> bool:
    """Tell whether oneDNN convolves in a dtype on this processor; bf16 takes AVX-512 or better."""
    if not torch.backends.mkldnn.is_available():  # type: ignore[no-untyped-call]
        return False
    if dtype == torch.bfloat16:
        return bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())
    return dtype == torch.float32


class OnednnConvolutions(PlainConvolutions):
    """oneDNN's convolutions, with bias, residual and ReLU fused, on weights packed once for all attack steps.

    The input gradient at stride 1 is itself a convolution, with the kernels rotated by 180°. So is that of a
    depthwise convolution at any stride, with zeros inserted between the gradient's pixels, where oneDNN's own
    backward takes ten times as long.
    """

    def __init__(self) -> None:
        self._packed_weights: dict[tuple[int, Direction, torch.Size], Tensor] = {}

    def invalidate(self) -> None:
        """Drop the packed weights: they are copies of values that have changed."""
        self._packed_weights.clear()

    def forward(self, conv: FoldedConv2d, x: Tensor, residual: Tensor | None, relu: bool) -> Tensor:
        """Return [relu](conv(x) + bias [+ residual]), in the dtype of x."""
        padding, stride = conv.padding, conv.stride
        if _uses_matrix_product(x, conv, padding):
            weight = self._weight_matrix(conv, "forward", x)
            return _convolve_by_product(x, weight, conv, padding, stride, conv.bias, residual, relu)
        return self._padded_by(padding, conv, x, residual, relu)

    def unpadded(self, conv: FoldedConv2d, x: Tensor, residual: Tensor | None, relu: bool) -> Tensor:
        """Return what `forward` does of images that hold the padding already."""
        return self._padded_by([0, 0], conv, x, residual, relu)

    def _padded_by(
        self, padding: list[int], conv: FoldedConv2d, x: Tensor, residual: Tensor | None, relu: bool
    ) -> Tensor:
        weight = self._packed_weight(conv, "forward", x, padding, conv.stride, conv.groups)
        shape = (padding, conv.stride, conv.dilation, conv.groups)
        return _convolution(x, weight, conv.bias, residual, shape, relu)

    def input_gradient(
        self, conv: FoldedConv2d, x: Tensor, gradient: Tensor, accumulated: Tensor | None
    ) -> Tensor:
        """Return the gradient at x, plus what is accumulated; as a convolution where it is one."""
        padding = _backward_padding(conv)
        if padding is None:
            return super().input_gradient(conv, x, gradient, accumulated)
        stride = [1, 1]
        if _uses_matrix_product(gradient, conv, padding):
            weight = self._weight_matrix(conv, "backward", gradient)
            return _convolve_by_product(gradient, weight, conv, padding, stride, None, accumulated, False)
        gradient = _insert_zeros(gradient, conv, x)
        weight = self._packed_weight(conv, "backward", gradient, padding, stride, conv.groups)
        shape = (padding, stride, conv.dilation, conv.groups)
        return _convolution(gradient, weight, None, accumulated, shape, False)

    def _packed_weight(
        self, conv: FoldedConv2d, direction: Direction, x: Tensor, padding: list[int], stride: list[int],
        groups: int,
    ) -> Tensor:  # fmt: skip
        """Return the weights in the blocked layout that oneDNN prefers for images of this shape.

        Without it, oneDNN would reorder the weights in every step of the attack. How many images there are
        makes no difference, and AutoAttack's batches shrink.
        """
        key = (id(conv), direction, x.shape[1:])
        if key not in self._packed_weights:
            self._packed_weights[key] = torch.ops.mkldnn._reorder_convolution_weight(
                _weight_for(conv, direction).contiguous(memory_format=torch.channels_last),
                padding, stride, conv.dilation, groups, list(x.shape),
            )  # fmt: skip
        return self._packed_weights[key]

    def _weight_matrix(self, conv: FoldedConv2d, direction: Direction, x: Tensor) -> Tensor:
        """Return the weights as a matrix (kh·kw·in, out)."""
        key = (id(conv), direction, x.shape[1:])
        if key not in self._packed_weights:
            weight = _weight_for(conv, direction)
            self._packed_weights[key] = weight.permute(2, 3, 1, 0).reshape(-1, len(weight)).contiguous()
        return self._packed_weights[key]


def _weight_for(conv: FoldedConv2d, direction: Direction) -> Tensor:
    """Return the weights (O, I, kh, kw) of the forward convolution, or of its input gradient as one."""
    if direction == "forward":
        return conv.weight
    flipped = conv.weight.to(conv.result_dtype).flip(2, 3)
    return flipped if conv.groups > 1 else flipped.transpose(0, 1)


def _insert_zeros(gradient: Tensor, conv: FoldedConv2d, x: Tensor) -> Tensor:
    """Insert the zeros that a strided convolution's gradient lacks to be that of a convolution at stride 1.

    They lie between its pixels, and behind the last one where x has rows or columns that no stride reached.
    """
    (down, right), size = conv.stride, conv.weight.shape[2:]
    if (down, right) == (1, 1):
        return gradient
    sides = [
        side - d * (k - 1) + 2 * p
        for side, d, k, p in zip(x.shape[2:], conv.dilation, size, conv.padding, strict=True)
    ]
    # torch.zeros has no memory_format.
    wide = torch.empty(
        *gradient.shape[:2], *sides, dtype=gradient.dtype, memory_format=torch.channels_last
    ).zero_()
    height, width = gradient.shape[2:]
    wide[:, :, ::down, ::right][:, :, :height, :width] = gradient
    return wide


def _convolution(
    x: Tensor, weight: Tensor, bias: Tensor | None, added: Tensor | None,
    shape: tuple[list[int], list[int], list[int], int], relu: bool,
) -> Tensor:  # fmt: skip
    """Call the operators that Inductor fuses into on CPUs; `shape`: padding, stride, dilation and groups."""
    ops, groups = torch.ops.mkldnn, shape[3]
    if added is None:
        out: Tensor = ops._convolution_pointwise(x, weight, bias, *shape, "relu" if relu else "none", [], "")
        return out
    if groups > 1 or added.shape[2:].numel() == 1:
        # The operator for sums lacks some dtypes with groups, and planes of one pixel before PyTorch 2.13.
        out = ops._convolution_pointwise(x, weight, bias, *shape, "none", [], "")
        return _add_and_rectify(out, added, relu)
    # Unlike the operator above, the one for sums takes the bias in the images' dtype only.
    bias = None if bias is None else bias.to(x.dtype)
    last = "relu" if relu else None
    out = ops._convolution_pointwise.binary(x, added, weight, bias, *shape, "add", 1.0, last, [], "")
    return out


def _add_and_rectify(out: Tensor, added: Tensor | None, relu: bool) -> Tensor:
    """Add a residual and apply the ReLU, in place: the convolution's result is still nobody else's."""
    if added is not None:
        out += added
    return torch.relu_(out) if relu else out


def _convolve_by_product(
    x: Tensor, weight: Tensor, conv: FoldedConv2d, padding: list[int], stride: list[int],
    bias: Tensor | None, added: Tensor | None, relu: bool,
) -> Tensor:  # fmt: skip
    """Convolve as the product of all patches (B·H·W, kh·kw·in) with the weights."""
    (kh, kw), (dy, dx) = conv.weight.shape[2:], padding
    padded = F.pad(x, (dx, dx, dy, dy)).permute(0, 2, 3, 1)
    patches = padded.unfold(1, kh, stride[0]).unfold(2, kw, stride[1]).permute(0, 1, 2, 4, 5, 3)
    planes = patches.shape[:3]
    out = patches.reshape(-1, len(weight)) @ weight
    if bias is not None:
        out += bias
    return _add_and_rectify(out.view(*planes, -1).permute(0, 3, 1, 2), added, relu)


def _uses_matrix_product(x: Tensor, conv: FoldedConv2d, padding: list[int]) -> bool:
    """Tell whether a matrix product is faster: bf16, small output planes, kernels of several pixels."""
    if x.dtype != torch.bfloat16:
        return False
    dense = conv.weight.shape[2:].numel() > 1 and conv.groups == 1 and conv.dilation == [1, 1]
    plane = x.shape[2] * x.shape[3] // (conv.stride[0] * conv.stride[1])
    return dense and plane <= SMALL_PLANE and min(padding) >= 0


def _backward_padding(conv: FoldedConv2d) -> list[int] | None:
    """Return the padding of the convolution that is the input gradient; None: it is not a convolution."""
    depthwise = 1 < conv.groups == conv.weight.shape[0] and conv.weight.shape[1] == 1
    if not depthwise and (conv.groups > 1 or conv.stride != [1, 1]):
        return None
    size = conv.weight.shape[2:]
    padding = [d * (k - 1) - p for d, k, p in zip(conv.dilation, size, conv.padding, strict=True)]
    return padding if min(padding) >= 0 else None
