"""BatchNorm with sum and ReLU in plain PyTorch, against PyTorch's own and autograd."""

import pytest
import torch
from torch.nn import functional as F

from fastpeer.kernels.batch_norm import Running, backward, fits, forward
from fastpeer.kernels.sign_bits import empty_signs, unpacked

EPS = 1e-3


def tensors():
    random = torch.Generator().manual_seed(0)
    x, residual, gradient = (torch.randn(6, 3, 4, 5, generator=random).double() for _ in range(3))
    weight, bias = (torch.randn(3, generator=random).double() for _ in range(2))
    return x * 3 + 7, residual, gradient, weight, bias


def composed(x, parts, weight, bias, residual, relu, updates=()):
    """The same by PyTorch's operators, and the running statistics after the updates."""
    mean, variance = torch.full_like(weight, 0.5), torch.full_like(weight, 2.0)
    halves = x.chunk(parts)
    for part in updates:
        F.batch_norm(halves[part], mean, variance, weight, bias, True, 0.1, EPS)
    y = torch.cat([F.batch_norm(half, None, None, weight, bias, True, 0.1, EPS) for half in halves])
    y = y if residual is None else y + residual
    return (F.relu(y) if relu else y), mean, variance


@pytest.mark.parametrize("relu", [False, True])
@pytest.mark.parametrize("summed", [False, True])
@pytest.mark.parametrize("updates", [(0,), (0, 0), (0, 1), (1, 0, 0, 1), (2, 0, 1)])
def test_it_is_what_pytorch_computes_part_by_part(updates, summed, relu):
    x, residual, gradient, weight, bias = tensors()
    parts = 1 + max(updates)
    residual = residual if summed else None
    leaves = [one.requires_grad_() for one in (x, weight, bias, residual) if one is not None]
    expected, mean, variance = composed(x, parts, weight, bias, residual, relu, updates)
    running = Running(torch.full_like(mean, 0.5), torch.full_like(mean, 2.0), 0.1, updates)
    with torch.no_grad():
        found = forward(x, parts, weight, bias, EPS, residual, relu, running)
        back = backward(
            gradient, x, found.y, found.mean, found.rstd, weight, bias, parts, relu, residual is not None
        )
    torch.testing.assert_close(found.y, expected, rtol=0, atol=1e-12)
    torch.testing.assert_close((running.mean, running.variance), (mean, variance), rtol=0, atol=1e-12)
    gradients = torch.autograd.grad(expected, leaves, gradient)
    torch.testing.assert_close([one for one in back if one is not None], list(gradients), rtol=0, atol=1e-11)


def test_low_precision_is_rounded_once_and_keeps_its_layout():
    x, residual, gradient, weight, bias = (one.float() for one in tensors())
    low, other, back = (
        one.bfloat16().contiguous(memory_format=torch.channels_last) for one in (x, residual, gradient)
    )
    found = forward(low, 2, weight, bias, EPS, other, True)
    exact = forward(low.float(), 2, weight, bias, EPS, other.float(), True)
    assert torch.equal(found.y, exact.y.bfloat16())
    assert torch.equal(found.mean, exact.mean)
    gradients = backward(back, low, found.y, found.mean, found.rstd, weight, bias, 2, True, True)
    for one in (found.y, gradients.x, gradients.residual):
        assert one.dtype == torch.bfloat16
        assert one.is_contiguous(memory_format=torch.channels_last)
    assert gradients.weight.dtype == gradients.bias.dtype == torch.float32


def test_equal_parts_of_more_than_one_value_fit():
    assert fits(torch.zeros(4, 3, 1, 1), 2)
    assert not fits(torch.zeros(2, 3, 1, 1), 2)
    assert not fits(torch.zeros(5, 3, 2, 2), 2)
    assert not fits(torch.zeros(4, 3), 2)


def test_signs_are_what_the_relu_let_through_and_serve_as_well_as_y():
    random = torch.Generator().manual_seed(3)
    x, residual, gradient = (torch.randn(4, 16, 3, 5, generator=random).double() for _ in range(3))
    x[1, 2] = float("nan")
    weight, bias = torch.ones(16).double(), torch.zeros(16).double()
    signs = empty_signs(x.shape, x.device)
    y, mean, _, rstd = forward(x, 2, weight, bias, EPS, residual, True, signs=signs)
    assert torch.equal(unpacked(signs), ~(y <= 0))
    by_y, by_signs = (
        backward(gradient, x, read, mean, rstd, weight, bias, 2, True, True) for read in (y, signs)
    )
    torch.testing.assert_close(by_signs, by_y, rtol=0, atol=0, equal_nan=True)
