"""The Triton version of the noise in the L2 ball that an attack starts from."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from fastpeer.kernels.counter_bits import signed
from fastpeer.kernels.fused.uniform_l2_start import uniform_l2_start
from fastpeer.kernels.uniform_l2_start import uniform_l2_start as oracle

KEY = 1234567
TOLERANCE = {torch.float64: 1e-15, torch.float32: 5e-7, torch.bfloat16: 2**-7, torch.float16: 2**-10}


@given(
    shape=st.tuples(st.integers(0, 5), st.integers(1, 4), st.integers(1, 24), st.integers(2, 24)),
    dtype=st.sampled_from(list(TOLERANCE)),
    memory_format=st.sampled_from([torch.contiguous_format, torch.channels_last]),
    epsilon=st.floats(0, 1) | st.just(128 / 255),
    key=st.integers(0, 2**64 - 1),
    clamp=st.booleans(),
)
def test_start_is_the_oracles(device, shape, dtype, memory_format, epsilon, key, clamp):
    images = torch.rand(shape, device=device).to(dtype).to(memory_format=memory_format)
    key = torch.tensor(signed(key), device=device)
    ours = uniform_l2_start(images, epsilon, key, clamp=clamp)
    expected = oracle(images, epsilon, key, clamp=clamp)
    torch.testing.assert_close(ours.double(), expected.double(), rtol=0, atol=2 * TOLERANCE[dtype])
    assert ours.dtype == dtype
    assert ours.is_contiguous(memory_format=memory_format)
    assert not clamp or ((ours >= 0) & (ours <= 1)).all()


@pytest.mark.parametrize("shape", [(4, 3, 32, 32), (2, 3, 5, 7)])
def test_error_is_at_most_twice_plain_pytorchs_in_the_worst_of_the_values(device, shape):
    """Of two float32 logarithms and cosines neither is always the better one: two places are granted."""
    zeros, key = torch.zeros(shape, device=device), torch.tensor(KEY, device=device)
    truth = oracle(zeros.double(), 1.0, key)
    off = [(found(zeros, 1.0, key).double() - truth).abs().max() for found in (uniform_l2_start, oracle)]
    assert off[0] <= max(2 * off[1], 2**-22 * truth.abs().max())


def test_noise_stays_in_the_ball(device):
    zeros, key = torch.zeros(8, 3, 32, 32, device=device), torch.tensor(KEY, device=device)
    norms = uniform_l2_start(zeros, 0.25, key).double().flatten(1).norm(dim=1)
    assert norms.max() <= 0.25 * (1 + 1e-6)
    # Nearly all of a ball of 3072 dimensions lies at its surface.
    assert norms.min() > 0.249


def test_unusable_arguments_are_refused(device):
    images, key = torch.zeros(2, 3, 4, 5, device=device), torch.tensor(0, device=device)
    with pytest.raises(ValueError, match="contiguous or channels-last"):
        uniform_l2_start(images[..., ::2], 0.1, key)
    with pytest.raises(ValueError, match="int64"):
        uniform_l2_start(images, 0.1, key.int())
