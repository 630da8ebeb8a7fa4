"""The attack's step."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from fastpeer.kernels.pgd_update import pgd_update

ATTACKS = {"seed": st.integers(0, 2**32), "step_size": st.floats(0, 0.5), "epsilon": st.floats(0, 0.5)}


def tensors(seed, dtype):
    """An iterate that may lie outside the ball and [0, 1], a gradient with zeros, and images."""
    random = torch.Generator().manual_seed(seed)
    images = torch.rand(2, 3, 4, 4, generator=random, dtype=dtype)
    gradient = torch.randn(images.shape, generator=random, dtype=dtype)
    gradient[gradient.abs() < 0.2] = 0
    return images + 0.1 * torch.randn(images.shape, generator=random, dtype=dtype), gradient, images


@given(**ATTACKS)
def test_step_ends_inside_the_ball_and_the_pixel_range(seed, step_size, epsilon):
    adversarial, gradient, images = tensors(seed, torch.float64)
    moved, _ = pgd_update(adversarial, gradient, images, step_size, epsilon)
    assert (moved - images).abs().max() <= epsilon + 1e-15
    assert moved.min() >= 0
    assert moved.max() <= 1


@given(**ATTACKS)
def test_pixel_without_gradient_is_only_projected(seed, step_size, epsilon):
    adversarial, gradient, images = tensors(seed, torch.float64)
    moved, _ = pgd_update(adversarial, gradient, images, step_size, epsilon)
    projected, _ = pgd_update(adversarial, gradient, images, 0.0, epsilon)
    assert torch.equal(moved[gradient == 0], projected[gradient == 0])
    inside, _ = pgd_update(images, torch.zeros_like(images), images, step_size, epsilon)
    assert torch.equal(inside, images)


@given(**ATTACKS)
def test_float32_step_equals_numpy_bit_for_bit(seed, step_size, epsilon):
    arguments = tensors(seed, torch.float32)
    adversarial, gradient, images = (one.numpy() for one in arguments)
    step, radius = np.float32(step_size), np.float32(epsilon)
    moved = adversarial + step * np.sign(gradient)
    expected = np.minimum(np.maximum(moved, images - radius), images + radius)
    expected = np.minimum(np.maximum(expected, np.float32(0)), np.float32(1))
    ours, _ = pgd_update(*arguments, step_size, epsilon)
    assert ours.dtype == torch.float32
    np.testing.assert_array_equal(ours.numpy(), expected)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
def test_nan_in_the_gradient_is_counted_and_moves_nothing(dtype):
    adversarial, gradient, images = tensors(0, torch.float32)
    gradient, holes = gradient.to(dtype), torch.rand(gradient.shape) < 0.2
    gradient[holes] = float("nan")
    for count in (torch.tensor(5), torch.tensor([5])):
        moved, _ = pgd_update(adversarial, gradient, images, 0.03, 0.1, nonfinite_count=count)
        assert int(count) == 5 + int(holes.sum())
    still, _ = pgd_update(adversarial, torch.zeros_like(gradient), images, 0.03, 0.1)
    assert torch.equal(moved[holes], still[holes])
    assert moved.dtype == torch.float32


def test_infinite_gradients_are_counted_and_a_step():
    gradient = torch.tensor([float("inf"), -float("inf"), 0.0], dtype=torch.float16)
    images, count = torch.full((3,), 0.5), torch.zeros(1, dtype=torch.int64)
    moved, _ = pgd_update(images, gradient, images, 0.125, 0.5, nonfinite_count=count)
    assert moved.tolist() == [0.625, 0.375, 0.5]
    assert count.item() == 2


def test_copy_is_the_result_in_its_dtype():
    arguments = tensors(0, torch.float32)
    moved, low = pgd_update(*arguments, 0.03, 0.1, copy=torch.bfloat16)
    assert torch.equal(low, moved.bfloat16())
    moved, low = pgd_update(*arguments, 0.03, 0.1)
    assert low is moved
