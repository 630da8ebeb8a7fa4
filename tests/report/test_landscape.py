"""The loss around weights: filters' lengths, a closed form, and weights that are put back."""

from __future__ import annotations

import numpy as np
import torch
from torch import nn

from fastpeer.report.landscape import loss_along, loss_over, random_direction


def test_each_filter_is_as_long_as_the_networks_and_one_dimension_stays() -> None:
    network = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Flatten(), nn.Linear(16, 2))
    direction = random_direction(network, 0, 0)
    assert set(direction) == {"0.weight", "3.weight"}
    for name, along in direction.items():
        weight = dict(network.named_parameters())[name]
        for filter_, ours in zip(weight, along, strict=True):
            torch.testing.assert_close(ours.norm(), filter_.norm())
    assert not torch.equal(direction["0.weight"], random_direction(network, 0, 1)["0.weight"])


def test_the_loss_of_a_linear_network_is_the_closed_form_and_weights_come_back() -> None:
    network = nn.Linear(1, 2, bias=False).requires_grad_(False)
    network.weight.copy_(torch.tensor([[1.0], [-0.3]]))
    before = network.weight.clone()
    along = {"weight": torch.tensor([[2.0], [0.0]])}
    across = {"weight": torch.tensor([[0.0], [1.0]])}
    images, labels = torch.ones(1, 1), torch.zeros(1, dtype=torch.int64)
    alphas = np.array([-0.5, 0.0, 0.7])
    expected = np.log1p(np.exp(-0.3 - (1 + 2 * alphas)))
    np.testing.assert_allclose(loss_along(network, along, alphas, images, labels), expected, rtol=1e-6)
    plane = np.log1p(np.exp(-0.3 + alphas[:, None] - (1 + 2 * alphas)))
    found = loss_over(network, (along, across), alphas, images, labels)
    np.testing.assert_allclose(found, plane, rtol=1e-6)
    assert torch.equal(network.weight, before)
