"""The convolution that reads the pixels, by kernels of its own; all others run as before."""

import torch
from torch import Tensor

from fastpeer.kernels.choice import Kernels
from fastpeer.kernels.first_convolution import takes
from fastpeer.victims.convolution import Convolutions, keeps_size
from fastpeer.victims.folding import FoldedConv2d


class FirstLayerConvolutions:
    """Kernels for the first layer where they take its shape; everything else falls to other convolutions.

    Its result is rounded where it is computed, and the way back takes the gradient in that dtype.

    Args:
        others: run all other convolutions.
        kernels: those named `first_convolution…` run the first.
        steps: the last of them may be used.
    """

    def __init__(self, others: Convolutions, kernels: Kernels, steps: bool = False) -> None:
        self.others = others
        self._step = kernels.first_convolution_step if steps else None
        self._forward = kernels.first_convolution
        self._gradient = kernels.first_convolution_gradient

    def invalidate(self) -> None:
        """Drop what the others have cached."""
        self.others.invalidate()

    def forward(self, conv: FoldedConv2d, x: Tensor, residual: Tensor | None, relu: bool) -> Tensor:
        """Return [relu](conv(x) + bias [+ residual]); that of the first layer in its result's dtype."""
        if residual is not None or not _is_first(conv, x):
            return self.others.forward(conv, x, residual, relu)
        out: Tensor = self._forward(x, conv.weight, conv.bias, relu, conv.result_dtype)
        return out

    def forward_with_signs(
        self, conv: FoldedConv2d, x: Tensor, residual: Tensor | None
    ) -> tuple[Tensor, Tensor | None]:
        """Return what the others do; of the first layer no signs are kept."""
        if residual is not None or not _is_first(conv, x):
            return self.others.forward_with_signs(conv, x, residual)
        return self.forward(conv, x, residual, relu=True), None

    def input_gradient(
        self, conv: FoldedConv2d, x: Tensor, gradient: Tensor, accumulated: Tensor | None
    ) -> Tensor:
        """Return the gradient at x, plus what is accumulated."""
        if not _is_first(conv, x):
            return self.others.input_gradient(conv, x, gradient, accumulated)
        found: Tensor = self._gradient(gradient, conv.weight)
        return found if accumulated is None else found + accumulated

    def masked_input_gradient(
        self, conv: FoldedConv2d, x: Tensor, gradient: Tensor, accumulated: Tensor | None,
        signs: Tensor | None = None,
    ) -> Tensor:  # fmt: skip
        """Return what the others do: no ReLU comes before the first layer."""
        return self.others.masked_input_gradient(conv, x, gradient, accumulated, signs)

    def takes_steps(self, conv: FoldedConv2d, images: Tensor) -> bool:
        """Tell whether `step` can take a step of images (B, 3, H, W), which this layer reads."""
        return self._step is not None and images.dtype == conv.weight.dtype and _is_first(conv, images)

    def step(
        self, conv: FoldedConv2d, gradient: Tensor, adversarial: Tensor, images: Tensor, step_size: float,
        epsilon: float, nonfinite_count: Tensor | None,
    ) -> Tensor:  # fmt: skip
        """Return the adversarial images after a step; `gradient` is that at conv(adversarial)."""
        assert self._step is not None  # `takes_steps` said so
        moved: Tensor = self._step(
            gradient, conv.weight, adversarial, images, step_size, epsilon, nonfinite_count
        )
        return moved


def _is_first(conv: FoldedConv2d, x: Tensor) -> bool:
    """Tell whether a layer reads exact pixels, and has a shape that the kernels take."""
    exact = conv.weight.dtype in (torch.float32, torch.float64) and conv.bias.dtype == conv.weight.dtype
    return exact and keeps_size(conv) and takes(x.shape, conv.weight.shape)
