"""The first convolution in plain PyTorch: autograd leads back as it does."""

import torch

from fastpeer.kernels.first_convolution import first_convolution, first_convolution_gradient


def drawn(*shapes):
    random = torch.Generator().manual_seed(0)
    return [torch.randn(*shape, generator=random).double() for shape in shapes]


def test_the_way_back_is_autograds():
    images, weight, bias = drawn((2, 3, 5, 6), (4, 3, 3, 3), (4,))
    out = first_convolution(images.requires_grad_(), weight, bias, False, torch.float64)
    gradient = torch.randn_like(out)
    expected = torch.autograd.grad(out, images, gradient)[0]
    found = first_convolution_gradient(gradient, weight)
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-12)


def test_only_the_result_is_rounded():
    images, weight, bias = drawn((2, 3, 5, 6), (4, 3, 3, 3), (4,))
    exact = torch.nn.functional.conv2d(images, weight, bias, padding=1).relu()
    found = first_convolution(images, weight, bias, True, torch.bfloat16)
    assert torch.equal(found, exact.bfloat16())


def test_the_way_back_rounds_the_weights_and_its_result():
    gradient, weight = drawn((2, 4, 5, 6), (4, 3, 3, 3))
    gradient = gradient.bfloat16()
    exact = first_convolution_gradient(gradient.double(), weight.bfloat16().double())
    found = first_convolution_gradient(gradient, weight.float())
    assert found.dtype == torch.bfloat16
    torch.testing.assert_close(found.double(), exact, rtol=2**-8, atol=1e-6)
