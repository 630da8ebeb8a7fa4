"""Random and centre crops of images of any size."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from fastpeer.data.crops import RATIO, centre_boxes, flipped, random_boxes

SIDES = st.integers(1, 5000)
MANY = 20_000


def same_size(count, height, width):
    return np.full(count, height), np.full(count, width)


def assert_within(boxes, heights, widths):
    top, left, height, width = boxes.T
    assert (boxes >= 0).all()
    assert (height >= 1).all()
    assert (width >= 1).all()
    assert (top + height <= heights).all()
    assert (left + width <= widths).all()


@given(height=SIDES, width=SIDES, key=st.integers(0, 2**64 - 1), low=st.floats(0.01, 1))
def test_boxes_lie_within_the_image(height, width, key, low):
    sizes = same_size(20, height, width)
    assert_within(random_boxes(key, np.arange(20), *sizes, (low, 1.0)), *sizes)
    assert_within(centre_boxes(*sizes), *sizes)


@given(st.permutations(range(60)), st.integers(1, 60), st.integers(0, 2**64 - 1))
def test_a_samples_box_depends_neither_on_the_others_nor_on_its_place(order, count, key):
    random = np.random.default_rng(0)
    heights, widths = random.integers(20, 600, (2, 60))
    chosen = np.array(order[:count])
    whole = random_boxes(key, np.arange(60), heights, widths, (0.08, 1.0))
    part = random_boxes(key, chosen, heights[chosen], widths[chosen], (0.08, 1.0))
    assert np.array_equal(whole[chosen], part)


def test_keys_and_samples_differ():
    sizes = same_size(50, 400, 300)
    first, second = (random_boxes(key, np.arange(50), *sizes, (0.08, 1.0)) for key in (1, 2))
    assert len(np.unique(first, axis=0)) == 50
    assert not (first == second).all(axis=1).any()


@pytest.mark.parametrize("scale", [(0.08, 1.0), (0.25, 0.5)])
def test_area_and_ratio_are_spread_as_torchvisions(scale):
    sizes = same_size(MANY, 1000, 1000)
    _, _, height, width = random_boxes(7, np.arange(MANY), *sizes, scale).T
    area, ratio = height * width / 1e6, np.log(width / height)
    assert scale[0] - 0.01 <= area.min() <= scale[0] + 0.01
    assert area.max() <= scale[1] + 0.01
    assert np.abs(ratio).max() <= np.log(RATIO[1]) + 0.01
    assert abs(ratio.mean()) < 0.01
    if scale[1] < 0.75:
        # Nothing of it is refused, so that it is uniform.
        assert abs(area.mean() - np.mean(scale)) < 0.005


def test_place_is_uniform():
    top, left, height, width = random_boxes(3, np.arange(MANY), *same_size(MANY, 800, 600), (0.1, 0.3)).T
    assert abs((top / (800 - height)).mean() - 0.5) < 0.01
    assert abs((left / (600 - width)).mean() - 0.5) < 0.01


@pytest.mark.parametrize(
    ("height", "width", "box"), [(10, 1000, (0, 493, 10, 13)), (1000, 10, (493, 0, 13, 10))]
)
def test_where_nothing_fits_it_is_the_largest_part_of_an_allowed_ratio(height, width, box):
    sizes = same_size(5, height, width)
    assert random_boxes(0, np.arange(5), *sizes, (1.0, 1.0)).tolist() == [list(box)] * 5


def test_half_are_flipped_whatever_the_batch():
    indices = torch.arange(2000)
    images = torch.tensor([1, 2], dtype=torch.uint8).expand(2000, 3, 4, 2)
    once = flipped(images, indices, 5)
    assert 900 < (once[:, 0, 0, 0] == 2).sum() < 1100
    assert torch.equal(flipped(images[300:400], indices[300:400], 5), once[300:400])
    assert torch.equal(flipped(once, indices, 5), images)
