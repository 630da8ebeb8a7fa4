"""The attack's step and its gradient at the logits."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional as F

from fastpeer.kernels.pgd_update import attack_gradient, pgd_update

ATTACKS = {"seed": st.integers(0, 2**32), "step_size": st.floats(0, 0.5), "epsilon": st.floats(0, 0.5)}


def tensors(seed, dtype):
    """An iterate that may lie outside the ball and [0, 1], a gradient with zeros, and images."""
    random = torch.Generator().manual_seed(seed)
    images = torch.rand(2, 3, 4, 4, generator=random, dtype=dtype)
    gradient = torch.randn(images.shape, generator=random, dtype=dtype)
    gradient[gradient.abs() < 0.2] = 0
    return images + 0.1 * torch.randn(images.shape, generator=random, dtype=dtype), gradient, images


@settings(deadline=None)
@given(**ATTACKS)
def test_step_ends_inside_the_ball_and_the_pixel_range(seed, step_size, epsilon):
    adversarial, gradient, images = tensors(seed, torch.float64)
    moved = pgd_update(adversarial, gradient, images, step_size, epsilon)
    assert (moved - images).abs().max() <= epsilon + 1e-15
    assert moved.min() >= 0
    assert moved.max() <= 1


@settings(deadline=None)
@given(**ATTACKS)
def test_pixel_without_gradient_is_only_projected(seed, step_size, epsilon):
    adversarial, gradient, images = tensors(seed, torch.float64)
    moved = pgd_update(adversarial, gradient, images, step_size, epsilon)
    projected = pgd_update(adversarial, gradient, images, 0.0, epsilon)
    assert torch.equal(moved[gradient == 0], projected[gradient == 0])
    inside = pgd_update(images, torch.zeros_like(images), images, step_size, epsilon)
    assert torch.equal(inside, images)


@settings(deadline=None)
@given(**ATTACKS)
def test_float32_step_equals_numpy_bit_for_bit(seed, step_size, epsilon):
    arguments = tensors(seed, torch.float32)
    adversarial, gradient, images = (one.numpy() for one in arguments)
    step, radius = np.float32(step_size), np.float32(epsilon)
    moved = adversarial + step * np.sign(gradient)
    expected = np.minimum(np.maximum(moved, images - radius), images + radius)
    expected = np.minimum(np.maximum(expected, np.float32(0)), np.float32(1))
    ours = pgd_update(*arguments, step_size, epsilon)
    assert ours.dtype == torch.float32
    np.testing.assert_array_equal(ours.numpy(), expected)


@pytest.mark.parametrize("one_hot", [False, True])
def test_attack_gradient_is_that_of_the_summed_divergence(one_hot):
    logits = (3 * torch.randn(5, 7, dtype=torch.float64)).requires_grad_()
    target = torch.softmax(torch.randn(5, 7, dtype=torch.float64), 1)
    if one_hot:
        target = F.one_hot(target.argmax(1), 7).double()
    loss = F.kl_div(torch.log_softmax(logits, 1), target, reduction="none").sum()
    (expected,) = torch.autograd.grad(loss, logits)
    torch.testing.assert_close(attack_gradient(logits.detach(), target), expected, rtol=0, atol=1e-14)


def test_attack_gradient_of_half_precision_logits_is_computed_in_the_targets_dtype():
    logits = torch.randn(5, 7).bfloat16()
    target = torch.softmax(torch.randn(5, 7), 1)
    assert torch.equal(attack_gradient(logits, target), torch.softmax(logits.float(), 1) - target)
