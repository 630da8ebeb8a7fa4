"""The Triton version of the noise that an attack starts from."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from fastpeer.kernels.counter_bits import signed
from fastpeer.kernels.fused.gaussian_start import gaussian_start
from fastpeer.kernels.gaussian_start import gaussian_start as oracle
from tests.kernels.layouts import laid_out_alike

# Noise reaches 6.7: a few roundings of that, then of the sum.
TOLERANCES = {torch.float64: 1e-14, torch.float32: 4e-6, torch.bfloat16: 2**-5, torch.float16: 2**-8}


@given(
    shape=st.tuples(st.integers(0, 5), st.integers(1, 4), st.integers(1, 24), st.integers(1, 24)),
    dtype=st.sampled_from(list(TOLERANCES)),
    memory_format=st.sampled_from([torch.contiguous_format, torch.channels_last]),
    key=st.integers(0, 2**64 - 1),
    clamp=st.booleans(),
)
def test_noise_is_the_oracles(device, shape, dtype, memory_format, key, clamp):
    images = torch.rand(shape, device=device).to(dtype).to(memory_format=memory_format)
    key = torch.tensor(signed(key), device=device)
    ours, theirs = (one(images, 1.0, key, clamp=clamp) for one in (gaussian_start, oracle))
    torch.testing.assert_close(ours, theirs, rtol=0, atol=TOLERANCES[dtype])
    assert ours.dtype == dtype
    assert ours.is_contiguous(memory_format=memory_format)
    assert not clamp or ((ours >= 0) & (ours <= 1)).all()


def test_an_attacks_start_is_the_oracles_to_the_last_bits(device):
    random = torch.Generator().manual_seed(0)
    images = torch.rand(16, 3, 32, 32, generator=random).to(device, memory_format=torch.channels_last)
    key = torch.tensor(7, device=device)
    ours, theirs = (one(images, 0.001, key) for one in (gaussian_start, oracle))
    assert not torch.equal(ours, images)
    # The last bit of what lies below 1; that of what the noise leads beyond is worth twice as much.
    assert ((ours - theirs).abs() <= torch.where(theirs.abs() < 1, 6e-8, 1.2e-7)).all()
    assert torch.equal(gaussian_start(images, 0.0, key), images)


IMAGES, KEY = torch.zeros(2, 3, 4, 5), torch.tensor(0)


@pytest.mark.parametrize(
    ("images", "key", "says"),
    [
        (IMAGES[..., ::2], KEY, "contiguous or channels-last"),
        (IMAGES.transpose(2, 3), KEY, "contiguous or channels-last"),
        (IMAGES.int(), KEY, "floating"),
        (torch.zeros(1).expand(2**31), KEY, "2\\^31"),
        (IMAGES, torch.zeros(1, dtype=torch.int64), "int64"),
        (IMAGES, torch.tensor(0, dtype=torch.int32), "int64"),
        (IMAGES, torch.zeros((), dtype=torch.int64, device="meta"), "on the device"),
    ],
)
def test_unusable_arguments_are_refused(device, images, key, says):
    key = key if key.is_meta else key.to(device)
    with pytest.raises(ValueError, match=says):
        gaussian_start(laid_out_alike(images, device), 0.001, key)


def test_captured_noise_follows_the_key(device):
    if device.type != "cuda":
        pytest.skip("CUDA graphs need a GPU")
    images, key = torch.rand(2, 3, 8, 8, device=device), torch.tensor(1, device=device)
    expected = [gaussian_start(images, 1.0, key + offset) for offset in (0, 1)]
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        moved = gaussian_start(images, 1.0, key)
    for one in expected:
        graph.replay()
        assert torch.equal(moved, one)
        key.add_(1)
