"""The noise that an attack starts from."""

import math

import pytest
import torch
from scipy.stats import kstest
from torch._subclasses import FakeTensorMode

from fastpeer.kernels.counter_bits import random_bits, signed
from fastpeer.kernels.gaussian_start import gaussian_start

KEY = torch.tensor(signed(0x0123456789ABCDEF * 7 % 2**64))
MASK = (1 << 64) - 1


def noise(shape, key=KEY, dtype=torch.float64):
    return gaussian_start(torch.zeros(shape, dtype=dtype), 1.0, key)


def slow_noise(count, key):
    """Box and Muller's formula on Python numbers."""
    for bits in random_bits(key, torch.arange(count)).tolist():
        upper, lower = (bits & MASK) >> 32, bits & 0xFFFFFFFF
        radius = math.sqrt(-2 * math.log((upper + 1) / 2**32))
        yield radius * math.cos(2 * math.pi * lower / 2**32)


def test_noise_is_box_and_mullers_of_the_bits_in_the_order_of_the_places():
    expected = torch.tensor(list(slow_noise(2 * 3 * 4 * 5, KEY)), dtype=torch.float64).view(2, 3, 4, 5)
    torch.testing.assert_close(noise((2, 3, 4, 5)), expected, rtol=0, atol=1e-13)
    single = noise((2, 3, 4, 5), dtype=torch.float32)
    torch.testing.assert_close(single.double(), expected, rtol=0, atol=2e-6)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_noise_is_standard_normal(dtype):
    some = noise((128, 3, 32, 32), dtype=dtype).double().flatten()
    assert kstest(some.numpy(), "norm").pvalue > 0.01
    deviations = len(some) ** -0.5
    # Means of z, z², z³, z⁴: 0, 1, 0, 3, with variances 1, 2, 15, 96.
    for power, (mean, variance) in enumerate([(0, 1), (1, 2), (0, 15), (3, 96)], 1):
        assert abs((some**power).mean() - mean) < 4 * variance**0.5 * deviations


def test_neighbouring_places_and_keys_are_uncorrelated():
    some = noise((128, 3, 32, 32)).flatten()
    others = [noise((128, 3, 32, 32), KEY + offset).flatten() for offset in (1, 2, 1024)]
    others += [some.roll(places) for places in (1, 2, 3, 32, 1024, 3072)]
    for other in others:
        assert abs((some * other).mean()) < 4 * len(some) ** -0.5


def test_an_images_noise_does_not_depend_on_the_batch_or_the_memory_format():
    whole = noise((7, 3, 4, 4))
    assert torch.equal(noise((3, 3, 4, 4)), whole[:3])
    images = torch.zeros(7, 3, 4, 4, dtype=torch.float64).to(memory_format=torch.channels_last)
    moved = gaussian_start(images, 1.0, KEY)
    assert moved.is_contiguous(memory_format=torch.channels_last)
    assert torch.equal(moved, whole)
    assert torch.equal(noise((7, 3, 4, 4)), whole)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
def test_noise_is_added_in_at_least_float32_and_clamped_only_on_demand(dtype):
    images = torch.rand(2, 3, 8, 8).to(dtype)
    moved = gaussian_start(images, 0.5, KEY)
    wide = torch.promote_types(dtype, torch.float32)
    expected = images.to(wide) + 0.5 * noise(images.shape, dtype=wide)
    assert moved.dtype == dtype
    assert torch.equal(moved, expected.to(dtype))
    assert moved.min() < 0
    assert moved.max() > 1
    assert torch.equal(gaussian_start(images, 0.5, KEY, clamp=True), expected.clamp(0, 1).to(dtype))
    assert torch.equal(gaussian_start(images, 0.0, KEY), images)


@pytest.mark.parametrize(
    "memory_format",
    [torch.contiguous_format, pytest.param(torch.channels_last, marks=pytest.mark.soak)],
)
def test_compiled_and_fake_it_is_the_same(memory_format):
    if memory_format == torch.channels_last and torch.__version__ < (2, 11):
        pytest.skip("PyTorch 2.8 compiles it wrongly; the step does not compile it")
    images = torch.rand(2, 3, 8, 8).to(memory_format=memory_format)
    moved = gaussian_start(images, 1.0, KEY)
    torch.testing.assert_close(torch.compile(gaussian_start)(images, 1.0, KEY), moved, rtol=0, atol=4e-6)
    with FakeTensorMode() as mode:
        fake = gaussian_start(mode.from_tensor(images), 1.0, mode.from_tensor(KEY))
    assert (fake.shape, fake.dtype, fake.stride()) == (moved.shape, moved.dtype, moved.stride())
