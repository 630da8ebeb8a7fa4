"""Convolution with bias, residual and ReLU, and its input gradient, by the libraries there are."""

import logging
from collections.abc import Callable
from typing import Any, Protocol

import torch
from torch import Tensor
from torch.nn import functional as F

from fastpeer.errors import brief
from fastpeer.victims.folding import FoldedConv2d

log = logging.getLogger(__name__)


class Convolutions(Protocol):
    """How a chain runs its convolutions."""

    def forget(self) -> None:
        """Drop whatever was derived from the weights: they have changed."""

    def forward(self, conv: FoldedConv2d, x: Tensor, residual: Tensor | None, relu: bool) -> Tensor:
        """Return [relu](conv(x) + bias [+ residual]), in the weights' dtype."""

    def input_gradient(
        self, conv: FoldedConv2d, x: Tensor, gradient: Tensor, partial: Tensor | None
    ) -> Tensor:
        """Return the gradient at x from the one at conv(x), plus what has come to x on other ways.

        All in the gradient's dtype, which the weights are converted to.
        """


class PlainConvolutions:
    """PyTorch's operators, one by one; what torch.compile fuses best."""

    def forget(self) -> None:
        """Nothing is kept."""

    def forward(self, conv: FoldedConv2d, x: Tensor, residual: Tensor | None, relu: bool) -> Tensor:
        """Convolve, add, rectify."""
        out = F.conv2d(x, conv.weight, None, conv.stride, conv.padding, conv.dilation, conv.groups)
        out = out + conv.bias.view(1, -1, 1, 1)
        if residual is not None:
            out = out + residual
        return (torch.relu(out) if relu else out).to(x.dtype)

    def input_gradient(
        self, conv: FoldedConv2d, x: Tensor, gradient: Tensor, partial: Tensor | None
    ) -> Tensor:
        """Transposed convolution, and add."""
        shape = (conv.stride, conv.padding, conv.dilation, False, [0, 0], conv.groups)
        found: Tensor = torch.ops.aten.convolution_backward(
            gradient, x, conv.weight.to(x.dtype), None, *shape, [True, False, False]
        )[0]
        return found if partial is None else found + partial


class CudnnConvolutions(PlainConvolutions):
    """cuDNN's convolutions with bias, residual and ReLU in their epilogue, on the way forward.

    Only where there is a residual: without one, PyTorch hands cuDNN uninitialised memory in its place, with a
    factor of 0, and 0·NaN is NaN. There, a kernel does what is left in one pass: the bias is kept in float32,
    and with PyTorch's operators a result in bf16 would pass through memory in float32 twice.

    Args:
        bias_sum_relu: that kernel (`fastpeer.kernels.bias_sum_relu` or its Triton version).
    """

    def __init__(self, bias_sum_relu: Callable[..., Any]) -> None:
        self._bias_sum_relu = bias_sum_relu
        self._works = True

    def forward(self, conv: FoldedConv2d, x: Tensor, residual: Tensor | None, relu: bool) -> Tensor:
        """One call where the epilogue is sum and ReLU, and channels are aligned."""
        aligned = conv.weight.shape[0] % 8 == 0 and conv.weight.shape[1] % 8 == 0
        if self._works and residual is not None and relu and aligned and conv.groups == 1:
            try:
                return _with_epilogue(conv, x, residual)
            except torch.OutOfMemoryError:
                raise
            except RuntimeError as error:
                self._works = False
                log.warning("engine.chain: convolutions run without fused epilogues (%s)", brief(error))
        out = F.conv2d(x, conv.weight, None, conv.stride, conv.padding, conv.dilation, conv.groups)
        finished: Tensor = self._bias_sum_relu(out, conv.bias, residual, relu)
        return finished


def _with_epilogue(conv: FoldedConv2d, x: Tensor, residual: Tensor) -> Tensor:
    shape = (conv.stride, conv.padding, conv.dilation, conv.groups)
    bias = conv.bias.to(x.dtype)
    out: Tensor = torch.cudnn_convolution_add_relu(x, conv.weight, residual, 1.0, bias, *shape)
    return out
