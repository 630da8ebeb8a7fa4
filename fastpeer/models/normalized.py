"""Normalisation inside the network, so that images and attacks stay in [0, 1] everywhere else."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn


class InputNormalization(nn.Module):
    """Maps images x (B, C, H, W) in [0, 1] to (x − mean) / std.

    Mean and std are constants, not weights: they follow the network to devices and dtypes, but are not in its
    state dict.

    Args:
        mean: one number for all channels, or one for each.
        std: as many numbers, above 0.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, mean: Sequence[float], std: Sequence[float]) -> None:
        super().__init__()
        for name, values in (("mean", mean), ("std", std)):
            self.register_buffer(name, torch.tensor(values).view(1, -1, 1, 1), persistent=False)
        self.exact = (tuple(mean), tuple(std))

    def _apply(self, fn: Any, recurse: bool = True) -> "InputNormalization":
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        for tensor, values in zip((self.mean, self.std), self.exact, strict=True):
            # From float32 to float64, the buffers must get the numbers themselves, not their rounding.
            tensor.copy_(torch.tensor(values, dtype=torch.float64).view(tensor.shape))
        return self

    def forward(self, images: Tensor) -> Tensor:
        """Normalise images (B, C, H, W); the output has their shape."""
        return (images - self.mean) / self.std

    def input_gradient(self, gradient: Tensor) -> Tensor:
        """Return the gradient at the images (B, C, H, W) for a gradient at the output, in its dtype."""
        return gradient / self.std.to(gradient.dtype)


class Normalized(nn.Module):
    """A network with its normalisation in front.

    `save_weights` and `load_weights` use the inner network's names, so that files do not depend on it.

    Maps images (B, 3, H, W) in [0, 1] to logits (B, classes), in the dtype of the weights.
    """

    def __init__(self, network: nn.Module, mean: Sequence[float], std: Sequence[float]) -> None:
        super().__init__()
        self.normalization = InputNormalization(mean, std)
        self.network = network

    def forward(self, images: Tensor) -> Tensor:
        """Map images (B, 3, H, W) in [0, 1] to logits (B, classes)."""
        logits: Tensor = self.network(self.normalization(images))
        return logits


def without_normalization(network: nn.Module) -> nn.Module:
    """Return the network without its normalisation; its parameters have the names used in files."""
    return network.network if isinstance(network, Normalized) else network


def normalization(network: nn.Module) -> tuple[tuple[float, ...], tuple[float, ...]] | None:
    """Return the mean and std of a network's normalisation; None if it has none."""
    return network.normalization.exact if isinstance(network, Normalized) else None
