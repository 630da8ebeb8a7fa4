"""Small networks that have learnt the digits of scikit-learn, and the digits that they have not seen."""

import functools

import torch
from sklearn.datasets import load_digits
from torch import Tensor, nn


def digits(classes: int, first: int, count: int) -> tuple[Tensor, Tensor]:
    """Images (count, 3, 8, 8) in [0, 1], and labels that are spread over all classes."""
    found = load_digits()
    kept = found.target < classes
    images = torch.tensor(found.images[kept] / 16, dtype=torch.float32)[:, None].repeat(1, 3, 1, 1)
    labels = torch.tensor(found.target[kept]) * max(1, classes // 10)
    return images[first : first + count], labels[first : first + count].long()


@functools.cache
def trained(classes: int, dtype: torch.dtype = torch.float32) -> nn.Module:
    """A network in eval mode, trained for a moment; not to be changed."""
    torch.manual_seed(0)
    network = nn.Sequential(
        nn.Conv2d(3, 16, 3, padding=1), nn.BatchNorm2d(16), nn.ReLU(), nn.Conv2d(16, 16, 3, stride=2),
        nn.ReLU(), nn.Flatten(), nn.Linear(144, classes),
    )  # fmt: skip
    images, labels = digits(classes, 0, 1000)
    optimizer = torch.optim.Adam(network.parameters(), 0.01)
    for step in range(50):
        part = torch.arange(64) + 64 * (step % 15)
        optimizer.zero_grad()
        nn.functional.cross_entropy(network(images[part]), labels[part]).backward()
        optimizer.step()
    return network.eval().requires_grad_(False).to(dtype)
