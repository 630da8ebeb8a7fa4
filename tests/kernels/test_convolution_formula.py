"""The convolution with its surroundings in plain PyTorch: autograd leads back as it does."""

import pytest
import torch

from fastpeer.kernels.convolution import convolution, convolution_input_gradient


@pytest.mark.parametrize("summed", [True, False])
@pytest.mark.parametrize(("side", "stride"), [(3, 1), (1, 1), (3, 2), (1, 2)])
def test_the_way_back_is_autograds(side, stride, summed):
    random = torch.Generator().manual_seed(0)
    before, weight, bias, other = (
        torch.randn(*shape, generator=random).double()
        for shape in [(2, 4, 6, 8), (3, 4, side, side), (3,), (2, 4, 6, 8)]
    )
    x = torch.relu(before).requires_grad_()
    out = convolution(x, weight, bias, stride=stride)
    gradient = torch.randn(out.shape, generator=random).double()
    loss = (out * gradient).sum() + ((x * other).sum() if summed else 0)
    expected = torch.autograd.grad(loss, x)[0] * (x > 0)
    found = convolution_input_gradient(gradient, weight, other if summed else None, x.detach(), stride)
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-12)


def test_bias_residual_and_relu_follow_the_convolution():
    random = torch.Generator().manual_seed(1)
    x, weight, bias, residual = (
        torch.randn(*shape, generator=random).double()
        for shape in [(1, 2, 4, 4), (3, 2, 3, 3), (3,), (1, 3, 4, 4)]
    )
    expected = torch.nn.functional.conv2d(x, weight, bias, padding=1) + residual
    assert torch.equal(convolution(x, weight, bias, residual, relu=True), expected.relu())
