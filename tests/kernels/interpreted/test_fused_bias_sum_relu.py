"""The fused convolution epilogue against its oracle, bit for bit."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from fastpeer.kernels.bias_sum_relu import bias_sum_relu as oracle
from fastpeer.kernels.fused.bias_sum_relu import bias_sum_relu
from tests.kernels.accuracy import stored

FORMATS = [torch.contiguous_format, torch.channels_last]
DTYPES = [torch.float64, torch.float32, torch.bfloat16, torch.float16]


def tensors(seed, device, shape=(3, 5, 7, 9), dtype=torch.float32, layout=torch.channels_last):
    random = torch.Generator().manual_seed(seed)
    out, residual = (torch.randn(shape, generator=random).to(dtype) for _ in range(2))
    bias = torch.randn(shape[1], generator=random).to(torch.promote_types(dtype, torch.float32))
    return out.to(device, memory_format=layout), bias.to(device), residual.to(device, memory_format=layout)


def expected(out, bias, residual, relu):
    """The oracle's result, rounded as this device's kernels round."""
    exact = torch.promote_types(out.dtype, torch.float32)
    return stored(oracle(out.to(exact), bias, residual, relu), out.dtype)


@given(
    seed=st.integers(0, 2**32), dtype=st.sampled_from(DTYPES), layout=st.sampled_from(FORMATS),
    summed=st.booleans(), relu=st.booleans(),
    shape=st.sampled_from([(3, 5, 7, 9), (1, 64, 4, 4), (2, 24, 1, 1), (1, 1, 33, 32), (4, 16, 8, 4)]),
)  # fmt: skip
def test_the_result_is_the_oracles(device, seed, dtype, layout, summed, relu, shape):
    out, bias, residual = tensors(seed, device, shape, dtype, layout)
    residual = residual if summed else None
    wanted = expected(out, bias, residual, relu)
    found = bias_sum_relu(out, bias, residual, relu)
    assert found is out
    assert torch.equal(found, wanted)


def test_a_residual_of_another_layout_is_converted(device):
    out, bias, residual = tensors(0, device)
    wanted = expected(out, bias, residual, True)
    assert torch.equal(bias_sum_relu(out, bias, residual.contiguous(), True), wanted)


def test_nan_stays(device):
    out, bias, residual = tensors(0, device)
    out[0, 0, 0, 0] = float("nan")
    found = bias_sum_relu(out, bias, residual, True)
    assert found.isnan().sum() == 1


ONE = torch.zeros(1, 3, 2, 2)


@pytest.mark.parametrize(
    "arguments",
    [
        (ONE.int(), torch.zeros(3), None),
        (ONE, torch.zeros(2), None),
        (ONE, torch.zeros(3), ONE[:, :2]),
        (ONE, torch.zeros(3).int(), None),
        (torch.zeros(1, 3, 2, 4)[..., ::2], torch.zeros(3), None),
        (ONE[0], torch.zeros(3), None),
        (ONE[:0], torch.zeros(3), None),
        (ONE, torch.zeros(3, device="meta"), None),
    ],
)
def test_what_does_not_fit_is_refused(arguments):
    with pytest.raises(ValueError, match=r"fused convolution epilogue: .* must "):
        bias_sum_relu(*arguments, True)
