"""The loss around a network's weights, along filter-normalised directions (Li et al., NeurIPS 2018)."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

Direction = Mapping[str, Tensor]


def random_direction(network: nn.Module, seed: int, number: int) -> dict[str, Tensor]:
    """Return a Gaussian direction in which each filter is as long as the network's own.

    Biases and BatchNorm stay where they are, as in the released code of Li et al.; a row of a linear layer
    is a filter. Networks of the same shapes get the same Gaussian.

    Args:
        network: the network; a parameter of one dimension has no filters.
        seed: of the run.
        number: each has a direction of its own.
    """
    generator = torch.Generator().manual_seed(1000 * seed + number)
    found = {}
    for name, weight in network.named_parameters():
        if weight.dim() > 1:
            drawn = torch.randn(weight.shape, generator=generator).to(weight)
            lengths = weight.detach().flatten(1).norm(dim=1) / (drawn.flatten(1).norm(dim=1) + 1e-10)
            found[name] = drawn * lengths.view(-1, *[1] * (weight.dim() - 1))
    return found


@torch.no_grad()
def loss_along(
    network: nn.Module, direction: Direction, alphas: Sequence[float] | np.ndarray,
    images: Tensor, labels: Tensor,
) -> np.ndarray:  # fmt: skip
    """Return the mean cross-entropy at weights moved by each of `alphas` (A,), float64 (A,).

    BatchNorm's statistics stay those of the network, which must be in eval mode.
    """
    found = []
    for alpha in alphas:
        with _moved(network, [(float(alpha), direction)]):
            found.append(float(F.cross_entropy(network(images), labels)))
    return np.array(found)


@torch.no_grad()
def loss_over(
    network: nn.Module, directions: tuple[Direction, Direction], alphas: np.ndarray,
    images: Tensor, labels: Tensor,
) -> np.ndarray:  # fmt: skip
    """Return the same over a square, float64 (A, A): rows along the second direction."""
    first, second = directions
    rows = []
    for beta in alphas:
        with _moved(network, [(float(beta), second)]):
            rows.append(loss_along(network, first, alphas, images, labels))
    return np.stack(rows)


@contextmanager
def _moved(network: nn.Module, moves: Sequence[tuple[float, Direction]]) -> Iterator[None]:
    """Move the weights, and put back the very bits that were there."""
    weights = dict(network.named_parameters())
    before = {name: weights[name].detach().clone() for _, direction in moves for name in direction}
    try:
        for alpha, direction in moves:
            for name, along in direction.items():
                weights[name].data.add_(along, alpha=alpha)
        yield
    finally:
        for name, tensor in before.items():
            weights[name].data.copy_(tensor)
