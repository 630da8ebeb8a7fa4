"""Normalisation inside a network, so that its images are in [0, 1] wherever they are seen or attacked."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn


class InputNormalization(nn.Module):
    """Maps images x (B, C, H, W) in [0, 1] to (x − mean) / std.

    Args:
        mean, std: one number for all channels, or one for each; std above 0.

    Both are constants of the network and no weights of it: they follow it to devices and dtypes, and are not
    in its state dict.
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
            # A wider dtype is to hold the numbers themselves, not what a narrower one made of them.
            tensor.copy_(torch.tensor(values, dtype=torch.float64).view(tensor.shape))
        return self

    def forward(self, images: Tensor) -> Tensor:
        """Normalise."""
        return (images - self.mean) / self.std

    def input_gradient(self, gradient: Tensor) -> Tensor:
        """Gradient at the images, from the one at the output, in its dtype."""
        return gradient / self.std.to(gradient.dtype)


class Normalized(nn.Module):
    """A network behind its normalisation; `save_weights` and `load_weights` know the network alone.

    Maps images (B, 3, H, W) in [0, 1] to logits (B, classes), in the dtype of the weights.
    """

    def __init__(self, network: nn.Module, mean: Sequence[float], std: Sequence[float]) -> None:
        super().__init__()
        self.normalization = InputNormalization(mean, std)
        self.network = network

    def forward(self, images: Tensor) -> Tensor:
        """Compute the logits."""
        logits: Tensor = self.network(self.normalization(images))
        return logits


def within(network: nn.Module) -> nn.Module:
    """Return the network without its normalisation, which has the names that weights go by in files."""
    return network.network if isinstance(network, Normalized) else network


def normalization(network: nn.Module) -> tuple[tuple[float, ...], tuple[float, ...]] | None:
    """Return the mean and std that a network normalises its images by, None if it does not."""
    return network.normalization.exact if isinstance(network, Normalized) else None
