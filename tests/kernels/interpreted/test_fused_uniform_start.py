"""The Triton version of the uniform noise that an attack starts from, bit for bit."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from fastpeer.kernels.counter_bits import signed
from fastpeer.kernels.fused.uniform_start import uniform_start
from fastpeer.kernels.uniform_start import uniform_start as oracle
from tests.kernels.accuracy import stored
from tests.kernels.layouts import laid_out_alike

DTYPES = [torch.float64, torch.float32, torch.bfloat16, torch.float16]


def expected(images, epsilon, key, clamp):
    """The oracle's result, rounded as the kernel's is."""
    wide = torch.promote_types(images.dtype, torch.float32)
    return stored(oracle(images.to(wide), epsilon, key, clamp=clamp), images.dtype)


@given(
    shape=st.tuples(st.integers(0, 5), st.integers(1, 4), st.integers(1, 24), st.integers(1, 24)),
    dtype=st.sampled_from(DTYPES),
    memory_format=st.sampled_from([torch.contiguous_format, torch.channels_last]),
    epsilon=st.floats(0, 1) | st.just(8 / 255),
    key=st.integers(0, 2**64 - 1),
    clamp=st.booleans(),
)
def test_start_is_the_oracles_to_the_last_bit(device, shape, dtype, memory_format, epsilon, key, clamp):
    images = torch.rand(shape, device=device).to(dtype).to(memory_format=memory_format)
    key = torch.tensor(signed(key), device=device)
    ours = uniform_start(images, epsilon, key, clamp=clamp)
    assert torch.equal(ours, expected(images, epsilon, key, clamp))
    assert ours.dtype == dtype
    assert ours.is_contiguous(memory_format=memory_format)
    assert not clamp or ((ours >= 0) & (ours <= 1)).all()


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("images", [16, pytest.param(64, marks=pytest.mark.soak)])
def test_noise_fills_its_interval_and_stays_in_it(device, images, dtype):
    key, zeros = torch.tensor(7, device=device), torch.zeros(images, 3, 32, 32, dtype=dtype, device=device)
    noise = uniform_start(zeros, 0.25, key)
    assert noise.abs().max() <= 0.25
    assert noise.abs().max() > 0.2499
    assert noise.all()
    assert abs(noise.mean()) < 4 * 0.25 / 3**0.5 * noise.numel() ** -0.5
    assert abs(noise.var() * 48 - 1) < 4 * 0.8**0.5 * noise.numel() ** -0.5


def test_nan_stays_nan_when_clamped(device):
    images = torch.full((1, 3, 2, 2), float("nan"), device=device)
    assert uniform_start(images, 0.5, torch.tensor(7, device=device), clamp=True).isnan().all()


IMAGES, KEY = torch.zeros(2, 3, 4, 5), torch.tensor(0)


@pytest.mark.parametrize(
    ("images", "key", "says"),
    [
        (IMAGES[..., ::2], KEY, "contiguous or channels-last"),
        (IMAGES.int(), KEY, "floating"),
        (IMAGES, torch.zeros(1, dtype=torch.int64), "int64"),
    ],
)
def test_unusable_arguments_are_refused(device, images, key, says):
    with pytest.raises(ValueError, match=says):
        uniform_start(laid_out_alike(images, device), 0.1, key.to(device))
