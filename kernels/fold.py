"""Convolutions with their BatchNorms folded in, at fixed statistics, in the precision of an attack."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class FoldedLayer:
    """A convolution or linear layer with the BatchNorm behind it, and where its folded form goes.

    Either part may be missing: a BatchNorm that no convolution precedes becomes a scale and a shift, a
    layer without a BatchNorm a copy in the buffers' dtype.

    Attributes:
        weight: (O, I, kh, kw) or (O, I), float32 or float64; None for a BatchNorm on its own.
        bias: the layer's own (O,), if it has one.
        gamma, beta: the BatchNorm's weight and bias (O,), if it has them.
        mean, variance: its statistics (O,); None: no BatchNorm.
        eps: its ε.
        folded_weight: buffer like `weight`, of any floating dtype; for a BatchNorm on its own its scale (O,).
        folded_bias: buffer for the shift (O,), of any floating dtype.
    """

    weight: Tensor | None
    bias: Tensor | None
    gamma: Tensor | None
    beta: Tensor | None
    mean: Tensor | None
    variance: Tensor | None
    eps: float
    folded_weight: Tensor
    folded_bias: Tensor

    @property
    def dtype(self) -> torch.dtype:
        """What the fold is computed in, the dtype of all tensors but the buffers."""
        source = self.mean if self.weight is None else self.weight
        assert source is not None  # check_layer saw to that
        return source.dtype

    def sources(self) -> list[Tensor | None]:
        """Return what is read: weight, bias, gamma, beta, mean, variance."""
        return [self.weight, self.bias, self.gamma, self.beta, self.mean, self.variance]


class Fold:
    """Folds layers anew at each call, from what their parameters and statistics are by then.

    Args:
        layers: all of them; their tensors are changed in place, never replaced.

    Raises:
        ValueError: a layer's tensors do not fit together.
    """

    def __init__(self, layers: Sequence[FoldedLayer]) -> None:
        self.layers = tuple(layers)
        for layer in layers:
            check_layer(layer)

    @torch.no_grad()
    def __call__(self) -> None:
        """Write each layer's `folded_weight` and `folded_bias`."""
        for layer in self.layers:
            scale, shift = _scale_and_shift(layer)
            weight = scale
            if layer.weight is not None:
                weight = layer.weight * scale.view(-1, *(1,) * (layer.weight.dim() - 1))
            layer.folded_weight.copy_(weight)
            layer.folded_bias.copy_(shift)


def _scale_and_shift(layer: FoldedLayer) -> tuple[Tensor, Tensor]:
    """γ/√(σ² + ε), and β + (bias − μ)·scale, each (O,)."""
    ones = torch.ones(layer.folded_bias.shape, dtype=layer.dtype, device=layer.folded_bias.device)
    bias = torch.zeros_like(ones) if layer.bias is None else layer.bias
    if layer.mean is None or layer.variance is None:
        return ones, bias
    gamma = ones if layer.gamma is None else layer.gamma
    scale = gamma / torch.sqrt(layer.variance + layer.eps)
    shift = (bias - layer.mean) * scale
    return scale, shift if layer.beta is None else layer.beta + shift


def check_layer(layer: FoldedLayer) -> None:
    """Refuse a layer whose tensors do not fit together.

    Raises:
        ValueError: saying what does not fit.
    """
    norm = (layer.gamma, layer.beta, layer.mean, layer.variance)
    if (layer.mean is None) != (layer.variance is None) or (
        layer.mean is None and any(tensor is not None for tensor in norm)
    ):
        raise ValueError("a BatchNorm must have both mean and variance")
    if layer.weight is None and (layer.mean is None or layer.bias is not None):
        raise ValueError("without a weight there must be a BatchNorm, and no bias")
    _check_shapes(layer)
    _check_dtypes(layer)


def _check_shapes(layer: FoldedLayer) -> None:
    if layer.weight is not None and layer.weight.dim() < 2:
        raise ValueError(f"a weight must have at least two dimensions, got {tuple(layer.weight.shape)}")
    channels = layer.folded_bias.shape
    of_channels = [tensor for tensor in (*layer.sources()[1:], layer.folded_bias) if tensor is not None]
    if len(channels) != 1 or any(tensor.shape != channels for tensor in of_channels):
        found = [tuple(tensor.shape) for tensor in of_channels]
        raise ValueError(f"all but the weights must be of shape {tuple(channels[:1])}, got {found}")
    expected = channels if layer.weight is None else layer.weight.shape
    if layer.folded_weight.shape != expected or expected[:1] != channels:
        raise ValueError(
            f"folded_weight {tuple(layer.folded_weight.shape)} and folded_bias {tuple(channels)} must fit"
            f" the weight's shape {tuple(expected)}"
        )


def _check_dtypes(layer: FoldedLayer) -> None:
    sources = [tensor for tensor in layer.sources() if tensor is not None]
    dtypes = {tensor.dtype for tensor in sources}
    if len(dtypes) > 1 or layer.dtype not in (torch.float32, torch.float64):
        found = sorted(map(str, dtypes))
        raise ValueError(f"parameters and statistics must be all float32 or all float64, got {found}")
    buffers = (layer.folded_weight, layer.folded_bias)
    if not all(buffer.is_floating_point() for buffer in buffers):
        found = [str(buffer.dtype) for buffer in buffers]
        raise ValueError(f"folded_weight and folded_bias must be floating, got {found}")
    devices = {tensor.device for tensor in (*sources, *buffers)}
    if len(devices) > 1:
        raise ValueError(f"all tensors of a layer must be on one device, got {sorted(map(str, devices))}")
