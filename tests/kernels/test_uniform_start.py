"""The uniform noise that an attack starts from."""

from fractions import Fraction

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import kstest
from torch._subclasses import FakeTensorMode

from fastpeer.kernels.counter_bits import random_bits, signed
from fastpeer.kernels.uniform_start import _uniform, uniform_start

KEY = torch.tensor(signed(0x0123456789ABCDEF * 7 % 2**64))
MASK = (1 << 64) - 1
DIGITS = {torch.float32: 24, torch.float64: 53}


def noise(shape, key=KEY, dtype=torch.float64):
    return uniform_start(torch.zeros(shape, dtype=dtype), 1.0, key)


@given(word=st.integers(0, MASK) | st.sampled_from([0, MASK, 1 << 63, (1 << 63) - 1]))
def test_a_number_is_the_middle_of_the_interval_that_its_upper_bits_name(word):
    for dtype, digits in DIGITS.items():
        number = Fraction(_uniform(torch.tensor(signed(word)), dtype).item())
        # Two's complement: the upper half of the words are the negative numbers.
        interval = signed(word) >> (64 - digits)
        assert number == Fraction(2 * interval + 1, 2**digits)
        assert abs(number) <= 1 - Fraction(1, 2**digits)
        # The word with all bits turned over gives the number of the other sign.
        assert _uniform(torch.tensor(signed(word ^ MASK)), dtype).item() == -number


def test_noise_is_that_of_the_bits_in_the_order_of_the_places():
    bits = random_bits(KEY, torch.arange(2 * 3 * 4 * 5))
    for dtype in DIGITS:
        assert torch.equal(noise((2, 3, 4, 5), dtype=dtype).flatten(), _uniform(bits, dtype))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_noise_is_uniform(dtype):
    some = noise((128, 3, 32, 32), dtype=dtype).double().flatten()
    assert kstest(some.numpy(), "uniform", (-1, 2)).pvalue > 0.01
    deviations = len(some) ** -0.5
    # Means of u, u², u³, u⁴: 0, 1/3, 0, 1/5, with variances 1/3, 4/45, 1/7, 16/225.
    moments = [(0, 1 / 3), (1 / 3, 4 / 45), (0, 1 / 7), (1 / 5, 16 / 225)]
    for power, (mean, variance) in enumerate(moments, 1):
        assert abs((some**power).mean() - mean) < 4 * variance**0.5 * deviations


def test_neighbouring_places_and_keys_are_uncorrelated():
    some = noise((128, 3, 32, 32)).flatten()
    others = [noise((128, 3, 32, 32), KEY + offset).flatten() for offset in (1, 2, 1024)]
    others += [some.roll(places) for places in (1, 2, 3, 32, 1024, 3072)]
    for other in others:
        assert abs((some * other).mean()) < 4 / 3 * len(some) ** -0.5


@given(epsilon=st.floats(0, 1, width=32), key=st.integers(0, MASK), dtype=st.sampled_from(list(DIGITS)))
def test_noise_stays_in_its_interval(epsilon, key, dtype):
    moved = uniform_start(torch.zeros(2, 3, 8, 8, dtype=dtype), epsilon, torch.tensor(signed(key)))
    assert moved.abs().max() <= epsilon


def test_an_images_noise_does_not_depend_on_the_batch_or_the_memory_format():
    whole = noise((7, 3, 4, 4))
    assert torch.equal(noise((3, 3, 4, 4)), whole[:3])
    images = torch.zeros(7, 3, 4, 4, dtype=torch.float64).to(memory_format=torch.channels_last)
    moved = uniform_start(images, 1.0, KEY)
    assert moved.is_contiguous(memory_format=torch.channels_last)
    assert torch.equal(moved, whole)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
def test_noise_is_added_in_at_least_float32_and_clamped_only_on_demand(dtype):
    images = torch.rand(2, 3, 8, 8).to(dtype)
    moved = uniform_start(images, 0.5, KEY)
    wide = torch.promote_types(dtype, torch.float32)
    expected = images.to(wide) + 0.5 * noise(images.shape, dtype=wide)
    assert moved.dtype == dtype
    assert torch.equal(moved, expected.to(dtype))
    assert moved.min() < 0
    assert moved.max() > 1
    assert torch.equal(uniform_start(images, 0.5, KEY, clamp=True), expected.clamp(0, 1).to(dtype))
    assert torch.equal(uniform_start(images, 0.0, KEY), images)


@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
def test_compiled_and_fake_it_is_the_same(memory_format):
    if memory_format == torch.channels_last and torch.__version__ < (2, 11):
        pytest.skip("PyTorch 2.8 compiles it wrongly; the step does not compile it")
    images = torch.rand(2, 3, 8, 8).to(memory_format=memory_format)
    moved = uniform_start(images, 1.0, KEY, clamp=True)
    compiled = torch.compile(uniform_start)(images, 1.0, KEY, clamp=True)
    torch.testing.assert_close(compiled, moved, rtol=0, atol=2e-7)
    with FakeTensorMode() as mode:
        fake = uniform_start(mode.from_tensor(images), 1.0, mode.from_tensor(KEY))
    assert (fake.shape, fake.dtype, fake.stride()) == (moved.shape, moved.dtype, moved.stride())
