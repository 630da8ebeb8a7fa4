"""Semantic gradients as the paper describes them, and the features before the last layer."""

from __future__ import annotations

import numpy as np
import torch
from torch import nn

from fastpeer.report.networks import penultimate, scaled_gradient


def test_a_gradient_is_clipped_summed_and_scaled() -> None:
    gradient = np.random.default_rng(0).standard_normal((2, 3, 5, 4))
    gradient[0, 0, 0, 0] = 50.0
    found = scaled_gradient(torch.from_numpy(gradient)).numpy()
    for ours, raw in zip(found, gradient, strict=True):
        spread = 3 * raw.std(ddof=1)
        summed = np.abs(np.clip(raw, -spread, spread)).sum(0)
        expected = (summed - summed.min()) / (summed.max() - summed.min())
        np.testing.assert_allclose(ours, expected, atol=1e-12)
    assert not scaled_gradient(torch.zeros(1, 3, 2, 2)).any()


def test_features_are_what_the_last_layer_sees() -> None:
    network = nn.Sequential(nn.Flatten(), nn.Linear(12, 5), nn.ReLU(), nn.Linear(5, 2))
    images = torch.rand(3, 3, 2, 2)
    expected = network[2](network[1](images.flatten(1))).detach().numpy()
    found = penultimate(network, images)
    assert found is not None
    np.testing.assert_array_equal(found, expected)
    assert penultimate(nn.Conv2d(3, 2, 1), images) is None
