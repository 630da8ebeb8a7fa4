"""Convolution with bias, residual and ReLU, and its input gradient, by PyTorch's operators or cuDNN."""

import logging
from collections.abc import Callable
from typing import Any, Protocol

import torch
from torch import Tensor
from torch.nn import functional as F

from fastpeer.errors import brief
from fastpeer.kernels.convolution import takes
from fastpeer.kernels.sign_bits import empty_signs
from fastpeer.victims.folding import FoldedConv2d

log = logging.getLogger(__name__)


class Convolutions(Protocol):
    """How a chain runs its convolutions.

    Shapes: x and residual (B, C, H, W) in the weights' dtype.
    """

    def invalidate(self) -> None:
        """Drop whatever was derived from the weights, because they have changed."""

    def forward(self, conv: FoldedConv2d, x: Tensor, residual: Tensor | None, relu: bool) -> Tensor:
        """Return [relu](conv(x) + bias [+ residual]), in the weights' dtype or that of the layer's result."""

    def forward_with_signs(
        self, conv: FoldedConv2d, x: Tensor, residual: Tensor | None
    ) -> tuple[Tensor, Tensor | None]:
        """Return relu(conv(x) + bias [+ residual]), and its signs (`signs_of`), if any are kept."""

    def input_gradient(
        self, conv: FoldedConv2d, x: Tensor, gradient: Tensor, accumulated: Tensor | None
    ) -> Tensor:
        """Return the gradient at x for the one at conv(x), plus the gradient accumulated at x so far.

        All in the gradient's dtype, which the weights are converted to.
        """

    def masked_input_gradient(
        self, conv: FoldedConv2d, x: Tensor, gradient: Tensor, accumulated: Tensor | None,
        signs: Tensor | None = None,
    ) -> Tensor:  # fmt: skip
        """Return the input gradient in front of the ReLU that x comes from: 0 where x is not positive.

        `signs` are those of x, if they were kept.
        """


class PlainConvolutions:
    """PyTorch's operators, one by one: for any device and dtype, and what torch.compile fuses best."""

    def invalidate(self) -> None:
        """Do nothing: no weights are cached."""

    def forward(self, conv: FoldedConv2d, x: Tensor, residual: Tensor | None, relu: bool) -> Tensor:
        """Return [relu](conv(x) + bias [+ residual]), in the dtype of x."""
        # The bias is added separately because it is kept in the network's own, wider dtype.
        out = F.conv2d(x, conv.weight, None, conv.stride, conv.padding, conv.dilation, conv.groups)
        out = out + conv.bias.view(1, -1, 1, 1)
        if residual is not None:
            out = out + residual
        return (torch.relu(out) if relu else out).to(x.dtype)

    def forward_with_signs(
        self, conv: FoldedConv2d, x: Tensor, residual: Tensor | None
    ) -> tuple[Tensor, Tensor | None]:
        """Return what `forward` does, with the ReLU; no signs are kept."""
        return self.forward(conv, x, residual, relu=True), None

    def input_gradient(
        self, conv: FoldedConv2d, x: Tensor, gradient: Tensor, accumulated: Tensor | None
    ) -> Tensor:
        """Return the transposed convolution of the gradient, plus what is accumulated."""
        shape = (conv.stride, conv.padding, conv.dilation, False, [0, 0], conv.groups)
        found: Tensor = torch.ops.aten.convolution_backward(
            gradient, x, conv.weight.to(x.dtype), None, *shape, [True, False, False]
        )[0]
        return found if accumulated is None else found + accumulated

    def masked_input_gradient(
        self, conv: FoldedConv2d, x: Tensor, gradient: Tensor, accumulated: Tensor | None,
        signs: Tensor | None = None,
    ) -> Tensor:  # fmt: skip
        """Return the input gradient, and then 0 where x is not positive."""
        return through_relu(self.input_gradient(conv, x, gradient, accumulated), x)


class CudnnConvolutions(PlainConvolutions):
    """cuDNN's convolutions, with bias, residual and ReLU in the epilogue of the forward convolution.

    The epilogue is used only where there is a residual: without one, PyTorch passes uninitialised memory to
    cuDNN in its place, with a factor of 0, and 0·NaN is NaN. Elsewhere one kernel adds bias and residual and
    applies the ReLU: the bias is kept in float32, so PyTorch's operators would write a bf16 result to memory
    in float32 twice.

    Args:
        bias_sum_relu: that kernel (`fastpeer.kernels.bias_sum_relu` or its Triton version).
    """

    def __init__(self, bias_sum_relu: Callable[..., Any]) -> None:
        self._bias_sum_relu = bias_sum_relu
        self._has_epilogues = True

    def forward(self, conv: FoldedConv2d, x: Tensor, residual: Tensor | None, relu: bool) -> Tensor:
        """Return [relu](conv(x) + bias [+ residual]), in the dtype of x."""
        aligned = conv.weight.shape[0] % 8 == 0 and conv.weight.shape[1] % 8 == 0
        if self._has_epilogues and residual is not None and relu and aligned and conv.groups == 1:
            try:
                return _with_epilogue(conv, x, residual)
            except torch.OutOfMemoryError:
                raise
            except RuntimeError as error:
                # What cuDNN supports depends on its version and the GPU; try it once.
                self._has_epilogues = False
                log.warning("engine.chain: convolutions run without fused epilogues (%s)", brief(error))
        out = F.conv2d(x, conv.weight, None, conv.stride, conv.padding, conv.dilation, conv.groups)
        finished: Tensor = self._bias_sum_relu(out, conv.bias, residual, relu)
        return finished


class OwnConvolutions(CudnnConvolutions):
    """3×3 convolutions at stride 1 by our own kernel, with all that surrounds them; cuDNN's for the rest.

    Args:
        bias_sum_relu: see `CudnnConvolutions`.
        forward, input_gradient: the kernel (`fastpeer.kernels.convolution`, or its Triton form).
        others: run those of 1×1, and at stride 2, by the kernel too.
        keeps_signs: write which values a ReLU let through as bits, and read these on the way back.
    """

    def __init__(
        self, bias_sum_relu: Callable[..., Any], forward: Callable[..., Tensor],
        input_gradient: Callable[..., Tensor], others: bool = False, keeps_signs: bool = False,
    ) -> None:  # fmt: skip
        super().__init__(bias_sum_relu)
        self._own_forward = forward
        self._own_input_gradient = input_gradient
        self._others = others
        self._keeps_signs = keeps_signs

    def forward(self, conv: FoldedConv2d, x: Tensor, residual: Tensor | None, relu: bool) -> Tensor:
        """Return [relu](conv(x) + bias [+ residual]), in the dtype of x."""
        if is_own(conv, x, self._others):
            return self._own_forward(x, conv.weight, conv.bias, residual, relu, conv.stride[0])
        return super().forward(conv, x, residual, relu)

    def forward_with_signs(
        self, conv: FoldedConv2d, x: Tensor, residual: Tensor | None
    ) -> tuple[Tensor, Tensor | None]:
        """Return relu(conv(x) + bias [+ residual]), and its signs if our own kernel computes it."""
        if not self._keeps_signs or not is_own(conv, x, self._others):
            return super().forward_with_signs(conv, x, residual)
        stride = conv.stride[0]
        shape = len(x), len(conv.weight), x.shape[2] // stride, x.shape[3] // stride
        signs = empty_signs(shape, x.device)
        return self._own_forward(x, conv.weight, conv.bias, residual, True, stride, signs=signs), signs

    def input_gradient(
        self, conv: FoldedConv2d, x: Tensor, gradient: Tensor, accumulated: Tensor | None
    ) -> Tensor:
        """Return the gradient at x, plus what is accumulated."""
        if is_own(conv, x, self._others):
            return self._back(conv, gradient, accumulated, None)
        return super().input_gradient(conv, x, gradient, accumulated)

    def masked_input_gradient(
        self, conv: FoldedConv2d, x: Tensor, gradient: Tensor, accumulated: Tensor | None,
        signs: Tensor | None = None,
    ) -> Tensor:  # fmt: skip
        """Return the gradient at x, plus what is accumulated, where x is positive."""
        if is_own(conv, x, self._others):
            return self._back(conv, gradient, accumulated, x if signs is None else signs)
        return super().masked_input_gradient(conv, x, gradient, accumulated)

    def _back(
        self, conv: FoldedConv2d, gradient: Tensor, accumulated: Tensor | None, mask: Tensor | None
    ) -> Tensor:
        gradient = _channels_last(gradient)
        return self._own_input_gradient(gradient, conv.weight, accumulated, mask, conv.stride[0])


def is_own(conv: FoldedConv2d, x: Tensor, others: bool) -> bool:
    """Tell whether our own kernel runs a layer on x (B, C, H, W): `others` than 3×3 at stride 1, too."""
    side, stride = conv.weight.shape[2], conv.stride[0]
    usual = side == 3 and keeps_size(conv)
    padded = conv.padding == 2 * [side // 2] and conv.dilation == [1, 1] and conv.groups == 1
    fits = usual or (others and padded and conv.stride == [stride, stride])
    return fits and takes(x, conv.weight, stride)


def keeps_size(conv: FoldedConv2d) -> bool:
    """Tell whether a layer has stride and padding of 1, and neither dilation nor groups."""
    return (conv.stride, conv.padding, conv.dilation, conv.groups) == ([1, 1], [1, 1], [1, 1], 1)


def _channels_last(gradient: Tensor) -> Tensor:
    return gradient.contiguous(memory_format=torch.channels_last)


def through_relu(gradient: Tensor, result: Tensor) -> Tensor:
    """Return the gradient in front of a ReLU: 0 where the ReLU's result is not positive."""
    # What autograd calls for a ReLU: one kernel, without a mask in memory.
    masked: Tensor = torch.ops.aten.threshold_backward(gradient, result, 0)
    return masked


def _with_epilogue(conv: FoldedConv2d, x: Tensor, residual: Tensor) -> Tensor:
    shape = (conv.stride, conv.padding, conv.dilation, conv.groups)
    bias = conv.bias.to(x.dtype)
    out: Tensor = torch.cudnn_convolution_add_relu(x, conv.weight, residual, 1.0, bias, *shape)
    return out
