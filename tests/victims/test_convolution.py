"""The ways of running a chain's convolutions, against PyTorch's own in float64."""

import pytest
import torch
from hypothesis import assume, given
from hypothesis import strategies as st
from torch import nn

from fastpeer.victims.convolution import PlainConvolutions
from fastpeer.victims.folding import FoldedConv2d
from fastpeer.victims.onednn import OnednnConvolutions
from tests.victims.folds import skip_unless_it_runs

shapes = st.fixed_dictionaries(
    {
        "kernel_size": st.sampled_from([1, 3, 5, (1, 3)]),
        "stride": st.sampled_from([1, 2, 3, (2, 1)]),
        "padding": st.sampled_from([0, 1, 2, (1, 0)]),
        "dilation": st.sampled_from([1, 2]),
    }
)
channels = st.sampled_from([(4, 8, 1), (8, 4, 1), (8, 8, 8), (8, 8, 2), (4, 8, 4)])
"""Into, out of, and groups: dense, depthwise, grouped, and depthwise with two outputs for each channel."""


def folded(shape, groups, dtype, random):
    into, out, count = groups
    conv = nn.Conv2d(into, out, groups=count, **shape)
    made = FoldedConv2d(conv, dtype, dtype)
    made.weight.copy_(torch.randn(made.weight.shape, generator=random))
    made.bias.copy_(torch.randn(out, generator=random))
    return made


def draw(random, *shape, dtype):
    drawn = torch.randn(shape, generator=random).to(memory_format=torch.channels_last)
    return drawn.to(dtype)


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-5), (torch.bfloat16, 2e-2)])
@pytest.mark.parametrize("convolutions", [PlainConvolutions, OnednnConvolutions])
@given(
    shape=shapes, groups=channels, height=st.integers(3, 9), width=st.integers(3, 9), summed=st.booleans(),
    relu=st.booleans(), seed=st.integers(0, 99),
)  # fmt: skip
def test_forward_and_back_are_pytorchs(
    convolutions, dtype, tolerance, shape, groups, height, width, summed, relu, seed
):
    skip_unless_it_runs(convolutions(), dtype)
    random = torch.Generator().manual_seed(seed)
    conv = folded(shape, groups, dtype, random)
    images = draw(random, 2, groups[0], height, width, dtype=dtype)
    x = images.double().requires_grad_()
    args = (conv.stride, conv.padding, conv.dilation, conv.groups)
    try:
        out = nn.functional.conv2d(x, conv.weight.double(), conv.bias.double(), *args)
    except RuntimeError:  # The kernel is larger than the padded images.
        assume(False)
    runner = convolutions()
    residual = draw(random, *out.shape, dtype=dtype) if summed else None
    expected = out if residual is None else out + residual
    found = runner.forward(conv, images, residual, relu)
    assert_close(found, expected.relu() if relu else expected, tolerance)

    gradient = draw(random, *out.shape, dtype=dtype)
    partial = draw(random, *images.shape, dtype=dtype) if summed else None
    (expected,) = torch.autograd.grad(out, x, gradient.double())
    found = runner.input_gradient(conv, images, gradient, partial)
    assert_close(found, expected if partial is None else expected + partial, tolerance)


def assert_close(found, expected, tolerance):
    assert found.shape == expected.shape
    error = (found.double() - expected).norm()
    assert error <= tolerance * max(expected.norm().item(), 1e-3)
