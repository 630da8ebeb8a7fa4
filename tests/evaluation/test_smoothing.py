"""Randomised smoothing: against the closed form of a linear network, and scipy's interval."""

from dataclasses import replace
from statistics import NormalDist

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import binomtest
from torch import nn

from fastpeer.evaluation.smoothing import ABSTAINS, Certificate, Smoothing, certify, lower_bound, radius

HOW = Smoothing(sigma=0.25, selection=50, samples=2000, alpha=0.001, seed=3, batch_size=64)


class HalfSpace(nn.Module):
    """Of class 1 where the first pixel is above `edge`; of no class where all pixels are above `lost`."""

    def __init__(self, edge, lost=np.inf):
        super().__init__()
        self.edge, self.lost = edge, lost

    def forward(self, images):
        first = images[:, 0, 0, 0] - self.edge
        logits = torch.stack((torch.zeros_like(first), first), 1)
        return torch.where((first > self.lost)[:, None], torch.nan, logits)


@given(st.integers(1, 3000), st.floats(0, 1), st.sampled_from([0.001, 0.05, 0.5]))
def test_the_bound_is_that_of_clopper_and_pearson(samples, share, alpha):
    count = round(share * samples)
    interval = binomtest(count, samples, alternative="greater").proportion_ci(1 - alpha, "exact")
    assert lower_bound(count, samples, alpha) == pytest.approx(interval.low, abs=1e-12)


def test_a_linear_network_s_radius_is_at_most_its_distance_and_near_it():
    image = torch.full((3, 4, 4), 0.5)
    found = [certify(HalfSpace(edge), image, index, HOW) for index, edge in enumerate((0.3, 0.4, 0.2))]
    for edge, one in zip((0.3, 0.4, 0.2), found, strict=True):
        distance = 0.5 - edge
        assert one.predicted == one.guess == 1
        probability = NormalDist().cdf(distance / HOW.sigma)
        assert abs(one.count - 2000 * probability) < 4 * (2000 * probability * (1 - probability)) ** 0.5
        assert 0.8 * distance - 0.02 < one.radius < distance
        assert one.radius == radius(one.count, HOW.samples, HOW)


def test_certificates_are_too_large_no_more_often_than_alpha():
    how, rng = replace(HOW, alpha=0.1), np.random.default_rng(0)
    counts = rng.binomial(how.samples, NormalDist().cdf(0.2 / how.sigma), 2000)
    wrong = np.mean([radius(int(count), how.samples, how) > 0.2 for count in counts])
    assert 0.06 < wrong < 0.12


def test_on_the_edge_it_abstains():
    one = certify(HalfSpace(0.5), torch.full((3, 4, 4), 0.5), 0, HOW)
    assert (one.predicted, one.radius) == (ABSTAINS, 0.0)
    assert abs(one.count - 1000) < 100


def test_the_noise_is_that_of_the_image_whatever_the_batch_size():
    image = torch.full((3, 4, 4), 0.5)
    found = {certify(HalfSpace(0.3), image, 7, replace(HOW, batch_size=size)) for size in (1, 64, 5000)}
    assert len(found) == 1
    assert certify(HalfSpace(0.3), image, 8, HOW) not in found
    assert certify(HalfSpace(0.3), image, 7, replace(HOW, seed=4)) not in found


def test_logits_that_are_not_finite_are_of_no_class():
    image = torch.full((3, 4, 4), 0.5)
    assert certify(HalfSpace(0.3, -np.inf), image, 0, HOW) == Certificate(ABSTAINS, 0.0, 0, 0, 2050)
    one = certify(HalfSpace(0.3, 0.3), image, 0, HOW)
    noise = np.random.Generator(np.random.Philox(np.random.SeedSequence([HOW.seed, 0])))
    first = 0.5 + HOW.sigma * noise.standard_normal((2050, 48), np.float32)[:, 0] - 0.3
    assert (one.guess, one.non_finite) == (1, int((first > 0.3).sum()))
    assert one.count == int(((first > 0) & (first <= 0.3))[50:].sum())
