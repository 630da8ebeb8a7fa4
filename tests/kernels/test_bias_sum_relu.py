"""The convolution's epilogue in plain PyTorch."""

import pytest
import torch

from fastpeer.kernels.bias_sum_relu import bias_sum_relu


@pytest.mark.parametrize("relu", [True, False])
@pytest.mark.parametrize("summed", [True, False])
def test_it_adds_and_rectifies_in_place(summed, relu):
    random = torch.Generator().manual_seed(0)
    out, residual = (torch.randn(2, 3, 4, 5, generator=random).double() for _ in range(2))
    bias = torch.randn(3, generator=random).double()
    expected = out + bias[:, None, None] + (residual if summed else 0)
    expected = expected.clamp(min=0) if relu else expected
    assert bias_sum_relu(out, bias, residual if summed else None, relu) is out
    assert torch.equal(out, expected)


def test_low_precision_is_rounded_once():
    """In bfloat16 1 + 1/256 is 1, and so is 1 + 1/256 + 1/256 added up one after the other."""
    out = torch.ones(1, 1, 1, 1).bfloat16()
    small = torch.full((1, 1, 1, 1), 1 / 256)
    assert bias_sum_relu(out, torch.full((1,), 1 / 256), small.bfloat16(), relu=True).item() == 1 + 1 / 128
