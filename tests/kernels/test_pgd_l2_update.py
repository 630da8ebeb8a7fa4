"""The attack's step in the L2 ball."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from fastpeer.kernels.pgd_l2_update import pgd_l2_update

ATTACKS = {"seed": st.integers(0, 2**32), "step_size": st.floats(0, 2), "epsilon": st.floats(0, 2)}
DTYPES = [torch.float64, torch.float32, torch.bfloat16, torch.float16]


def tensors(seed, dtype=torch.float64, count=2):
    """An iterate that may lie outside the ball and [0, 1], a gradient with zeros, and images."""
    random = torch.Generator().manual_seed(seed)
    images = torch.rand(count, 3, 4, 4, generator=random, dtype=dtype)
    gradient = torch.randn(images.shape, generator=random, dtype=dtype)
    gradient[gradient.abs() < 0.2] = 0
    return images + 0.1 * torch.randn(images.shape, generator=random, dtype=dtype), gradient, images


def norms(images):
    return images.flatten(1).norm(dim=1)


@given(**ATTACKS)
def test_step_ends_inside_the_ball_and_the_pixel_range(seed, step_size, epsilon):
    adversarial, gradient, images = tensors(seed)
    moved, _ = pgd_l2_update(adversarial, gradient, images, step_size, epsilon)
    assert norms(moved - images).max() <= epsilon * (1 + 1e-14) + 1e-15
    assert moved.min() >= 0
    assert moved.max() <= 1


@given(**ATTACKS)
def test_image_without_gradient_is_only_projected(seed, step_size, epsilon):
    adversarial, gradient, images = tensors(seed)
    gradient[0] = 0
    moved, _ = pgd_l2_update(adversarial, gradient, images, step_size, epsilon)
    projected, _ = pgd_l2_update(adversarial, gradient, images, 0.0, epsilon)
    assert torch.equal(moved[0], projected[0])
    inside, _ = pgd_l2_update(images, torch.zeros_like(images), images, step_size, epsilon)
    assert torch.equal(inside, images)


@given(**ATTACKS, power=st.integers(-120, 120), factor=st.floats(1, 2))
def test_each_images_gradient_may_have_any_scale(seed, step_size, epsilon, power, factor):
    """2^-120 squared is zero in float32, and 2^120 squared is infinite."""
    adversarial, gradient, images = tensors(seed, torch.float32)
    expected, _ = pgd_l2_update(adversarial, gradient, images, step_size, epsilon)
    scales = torch.tensor([2.0**power, factor]).view(2, 1, 1, 1)
    moved, _ = pgd_l2_update(adversarial, gradient * scales, images, step_size, epsilon)
    assert torch.equal(moved[0], expected[0])
    torch.testing.assert_close(moved[1], expected[1], rtol=0, atol=1e-6)


def test_a_step_inside_ball_and_pixel_range_has_its_length_along_the_gradient():
    images = torch.full((2, 3, 4, 4), 0.5, dtype=torch.float64)
    gradient = torch.randn(images.shape, dtype=torch.float64)
    moved, _ = pgd_l2_update(images, gradient, images, 0.25, 0.5)
    expected = images + 0.25 * gradient / norms(gradient).view(2, 1, 1, 1)
    torch.testing.assert_close(moved, expected, rtol=0, atol=1e-15)
    # Beyond the ball it ends at its surface, before the pixel range is looked at.
    moved, _ = pgd_l2_update(images, gradient, images, 0.75, 0.4)
    assert norms(moved - images).tolist() == pytest.approx([0.4, 0.4], abs=1e-15)


def test_the_ball_comes_before_the_pixel_range():
    images = torch.tensor([[0.9, 0.5]], dtype=torch.float64)
    moved, _ = pgd_l2_update(images, torch.tensor([[1.0, 1.0]]).double(), images, 2.0, 0.5)
    assert moved.tolist() == [[1.0, pytest.approx(0.5 + 0.5 * 0.5**0.5, abs=1e-15)]]


def test_an_images_step_does_not_depend_on_its_batch():
    adversarial, gradient, images = tensors(0, torch.float32, count=7)
    whole, _ = pgd_l2_update(adversarial, gradient, images, 0.3, 0.5)
    part, _ = pgd_l2_update(adversarial[2:4], gradient[2:4], images[2:4], 0.3, 0.5)
    assert torch.equal(part, whole[2:4])


@pytest.mark.parametrize("dtype", DTYPES)
def test_norms_of_low_precision_gradients_are_computed_in_float32(dtype):
    adversarial, gradient, images = tensors(0, torch.float32)
    low = gradient.to(dtype)
    moved, _ = pgd_l2_update(adversarial, low, images, 0.3, 0.5)
    truth, _ = pgd_l2_update(adversarial.double(), low.double(), images.double(), 0.3, 0.5)
    assert moved.dtype == torch.float32
    torch.testing.assert_close(moved.double(), truth, rtol=0, atol=2e-7)


@pytest.mark.parametrize("dtype", DTYPES)
def test_nan_in_the_gradient_is_counted_and_moves_nothing(dtype):
    adversarial, gradient, images = tensors(0, torch.float32)
    gradient, holes = gradient.to(dtype), torch.rand(gradient.shape) < 0.2
    without = gradient.masked_fill(holes, 0)
    gradient[holes] = float("nan")
    for count in (torch.tensor(5), torch.tensor([5])):
        moved, _ = pgd_l2_update(adversarial, gradient, images, 0.03, 9.0, nonfinite_count=count)
        assert int(count) == 5 + int(holes.sum())
    assert torch.equal(moved, pgd_l2_update(adversarial, without, images, 0.03, 9.0)[0])


def test_infinite_gradients_are_counted_and_the_direction():
    gradient = torch.tensor([[float("inf"), -float("inf"), 1.0, 0.0]])
    images = torch.full_like(gradient, 0.5)
    count = torch.zeros(1, dtype=torch.int64)
    moved, _ = pgd_l2_update(images, gradient, images, 0.25, 0.5, nonfinite_count=count)
    assert count.item() == 2
    side = 0.25 * 0.5**0.5
    torch.testing.assert_close(moved, 0.5 + torch.tensor([[side, -side, 0, 0]]), rtol=0, atol=1e-7)


def test_copy_is_the_result_in_its_dtype():
    arguments = tensors(0, torch.float32)
    moved, low = pgd_l2_update(*arguments, 0.3, 0.5, copy=torch.bfloat16)
    assert torch.equal(low, moved.bfloat16())
    moved, low = pgd_l2_update(*arguments, 0.3, 0.5)
    assert low is moved
