"""The shortest way onto a hyperplane: the official code's, without its sort."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from pyautoattack.fab_projections import projection_linf

from fastpeer.evaluation.autoattack_parts.projection import shortest_way_linf


@given(st.integers(0, 10**6), st.integers(1, 40), st.sampled_from([0.0, 0.3, 1.0]))
def test_it_is_pyautoattack_s(seed, pixels, at_an_edge):
    """With pixels at an edge, pixels without weight, and planes beyond the nearest corner."""
    source = torch.Generator().manual_seed(seed)
    points, normals, chosen, idle = torch.rand(4, 12, pixels, dtype=torch.float64, generator=source)
    points = torch.where(chosen < at_an_edge, points.round(), points)
    normals = torch.where(idle < 0.2, 0, normals - 0.5)
    away = torch.linspace(-1.2, 1.2, 12) * normals.abs().sum(1)
    offsets = (normals * points).sum(1) + away
    found, official = (way(points, normals, offsets) for way in (shortest_way_linf, projection_linf))
    torch.testing.assert_close(found, official, rtol=0, atol=1e-12)


@pytest.mark.parametrize(("offset", "way"), [(1.1, [0.3, 0.3]), (1.7, [0.5, 0.7]), (9.0, [0.5, 1.0])])
def test_a_pixel_at_its_edge_leaves_the_rest_to_the_others(offset, way):
    found = shortest_way_linf(torch.tensor([[0.5, 0.0]]), torch.ones(1, 2), torch.tensor([offset]))
    torch.testing.assert_close(found, torch.tensor([way]))


@pytest.mark.parametrize("offset", [0.0, 1.0])
def test_nothing_moves_without_a_direction(offset):
    assert shortest_way_linf(torch.rand(1, 5), torch.zeros(1, 5), torch.tensor([offset])).abs().sum() == 0
