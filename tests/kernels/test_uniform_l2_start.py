"""The noise in the L2 ball that an attack starts from."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import kstest
from torch._subclasses import FakeTensorMode

from fastpeer.kernels.counter_bits import random_bits, signed
from fastpeer.kernels.gaussian_start import gaussian_start
from fastpeer.kernels.uniform_l2_start import uniform_l2_start

KEY = torch.tensor(signed(0x0123456789ABCDEF * 7 % 2**64))
MASK = (1 << 64) - 1


def noise(shape, key=KEY, dtype=torch.float64):
    return uniform_l2_start(torch.zeros(shape, dtype=dtype), 1.0, key)


def norms(images):
    return images.double().flatten(1).norm(dim=1)


@pytest.mark.parametrize("shape", [(20000, 1, 1, 2), (5000, 3, 2, 2)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_noise_is_uniform_in_the_ball(shape, dtype):
    some = noise(shape, dtype=dtype)
    values = some[0].numel()
    assert kstest((norms(some) ** values).numpy(), "uniform").pvalue > 0.01
    # Each coordinate has mean 0 and variance 1 / (d + 2), and no two are correlated.
    flat = some.double().flatten(1)
    covariance = flat.T @ flat / len(flat)
    assert (flat.mean(0).abs() < 4 * (len(flat) * (values + 2)) ** -0.5).all()
    expected = torch.eye(values, dtype=torch.float64) / (values + 2)
    assert (covariance - expected).abs().max() < 6 / (values + 2) * len(flat) ** -0.5


def test_noise_is_the_direction_of_gaussian_noise_times_a_length_of_its_own_counter():
    some = noise((4, 3, 5, 6))
    gaussian = gaussian_start(torch.zeros(4, 3, 5, 6, dtype=torch.float64), 1.0, KEY)
    words = [word & MASK for word in random_bits(KEY, torch.tensor([-1, -2, -3, -4])).tolist()]
    lengths = torch.tensor([(((word >> 11) + 1) / 2**53) ** (1 / 90) for word in words], dtype=torch.float64)
    expected = gaussian / norms(gaussian).view(-1, 1, 1, 1) * lengths.view(-1, 1, 1, 1)
    torch.testing.assert_close(some, expected, rtol=0, atol=1e-14)


@given(
    epsilon=st.floats(0, 8, width=32),
    key=st.integers(0, MASK),
    dtype=st.sampled_from([torch.float32, torch.float64]),
)
def test_noise_stays_in_the_ball(epsilon, key, dtype):
    moved = uniform_l2_start(torch.zeros(2, 3, 8, 8, dtype=dtype), epsilon, torch.tensor(signed(key)))
    assert norms(moved).max() <= epsilon * (1 + 4 * torch.finfo(dtype).eps)


def test_an_images_noise_does_not_depend_on_the_batch_or_the_memory_format():
    whole = noise((7, 3, 4, 4))
    assert torch.equal(noise((3, 3, 4, 4)), whole[:3])
    images = torch.zeros(7, 3, 4, 4, dtype=torch.float64).to(memory_format=torch.channels_last)
    moved = uniform_l2_start(images, 1.0, KEY)
    assert moved.is_contiguous(memory_format=torch.channels_last)
    torch.testing.assert_close(moved, whole, rtol=0, atol=1e-15)
    assert not torch.equal(noise((7, 3, 4, 4), KEY + 1), whole)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
def test_noise_is_added_in_at_least_float32_and_clamped_only_on_demand(dtype):
    images = torch.rand(2, 3, 8, 8).to(dtype)
    moved = uniform_l2_start(images, 9.0, KEY)
    wide = torch.promote_types(dtype, torch.float32)
    expected = images.to(wide) + 9.0 * noise(images.shape, dtype=wide)
    assert moved.dtype == dtype
    assert torch.equal(moved, expected.to(dtype))
    assert moved.min() < 0
    assert moved.max() > 1
    assert torch.equal(uniform_l2_start(images, 9.0, KEY, clamp=True), expected.clamp(0, 1).to(dtype))
    assert torch.equal(uniform_l2_start(images, 0.0, KEY), images)
    assert uniform_l2_start(images[:0], 1.0, KEY).shape == (0, 3, 8, 8)


def test_fake_it_has_the_same_shape():
    images = torch.rand(2, 3, 8, 8)
    with FakeTensorMode() as mode:
        fake = uniform_l2_start(mode.from_tensor(images), 1.0, mode.from_tensor(KEY))
    assert (fake.shape, fake.dtype, fake.stride()) == (images.shape, images.dtype, images.stride())
