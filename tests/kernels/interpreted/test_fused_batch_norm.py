"""The fused BatchNorm against its oracle in float64."""

import copy

import pytest
import torch

from fastpeer.kernels import batch_norm as oracle
from fastpeer.kernels.batch_norm import Running
from fastpeer.kernels.fused import batch_norm as fused
from fastpeer.kernels.sign_bits import empty_signs, unpacked
from fastpeer.models import build_model
from fastpeer.step.fused_norms import NormsFused
from fastpeer.step.split_batchnorm import set_updates, split_batchnorms
from tests.kernels.accuracy import assert_at_most_twice, errors, stored, worst

SHAPES = [(4, 8, 5, 5), (6, 24, 7, 9), (2, 64, 4, 4), (6, 40, 1, 1)]
EPS = 1e-5


def tensors(seed, device, shape, dtype, mean=0.0, deviation=1.0):
    """x, residual, gradient, weight, bias."""
    random = torch.Generator().manual_seed(seed)
    x, residual, gradient = (torch.randn(shape, generator=random) for _ in range(3))
    offset = torch.randn(shape[1], generator=random)
    x = (x * deviation + offset[:, None, None] + mean).to(dtype)
    weight, bias = torch.randn(shape[1], generator=random) + 1, torch.randn(shape[1], generator=random)
    batches = (one.to(dtype).to(device, memory_format=torch.channels_last) for one in (x, residual, gradient))
    return *batches, weight.to(device), bias.to(device)


def run(kernels, given, parts, relu, summed, updates=(), dtype=None):
    """Run forward and backward; return all results, those like x in float32 or float64."""
    x, residual, gradient, weight, bias = (one if dtype is None else one.to(dtype) for one in given)
    residual = residual if summed else None
    running = Running(torch.full_like(weight, 0.5), torch.full_like(weight, 2.0), 0.1, updates)
    y, *statistics = kernels.forward(x, parts, weight, bias, EPS, residual, relu, running)
    mean, _, rstd = statistics
    back = kernels.backward(gradient, x, y, mean, rstd, weight, bias, parts, relu, summed)
    return [y, *statistics, running.mean, running.variance, *(one for one in back if one is not None)]


CALLS = [
    (1, True, False, (0, 0)),
    (2, True, False, (0, 0, 1)),
    (2, True, True, (1, 0, 1)),
    (1, False, True, ()),
]
"""Parts, ReLU, sum and updates of a call."""
FAR = [
    pytest.param(*call, mean, marks=() if (call[2], mean) == (True, 1e4) else pytest.mark.soak)
    for call in CALLS
    for mean in (10.0, 1e4)
]


@pytest.mark.parametrize(
    ("parts", "relu", "summed", "updates", "mean"), [*((*call, 0.0) for call in CALLS), *FAR]
)
def test_float32_is_no_farther_off_than_twice_pytorchs(device, parts, relu, summed, updates, mean):
    draws = []
    # float32 numbers around 1e4 are 1e-3 apart: which of the values near 0 a ReLU lets through is chance.
    relu = relu and mean < 1e4
    for seed, shape in enumerate(SHAPES):
        given = tensors(seed, device, shape, torch.float32, mean)
        found = run(fused, given, parts, relu, summed, updates)
        plain = run(oracle, given, parts, relu, summed, updates)
        truth = run(oracle, given, parts, relu, summed, updates, torch.float64)
        draws.append(errors(found, plain, truth))
    assert_at_most_twice(worst(draws))


def test_means_of_many_values_do_not_hang_on_the_first_of_them(device):
    x, *others = tensors(0, device, (8, 8, 8, 8), torch.float32)
    x -= x.mean((0, 2, 3), keepdim=True)
    x[0, :, 0, 0] = 6.0
    found, plain, truth = (
        run(kernels, (x, *others), 1, False, False, (0,), dtype)
        for kernels, dtype in ((fused, None), (oracle, None), (oracle, torch.float64))
    )
    y, mean, *rest = errors(found, plain, truth)
    assert mean.kernel <= 2**-24
    assert_at_most_twice([y, *rest])


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize(
    ("parts", "summed"),
    [*(pytest.param(*one, marks=pytest.mark.soak) for one in ((1, True), (2, False))), (1, False), (2, True)],
)
def test_low_precision_is_rounded_once(device, dtype, parts, summed):
    given = tensors(3, device, (6, 24, 7, 9), dtype)
    x = given[0]
    found = run(fused, given, parts, True, summed, (0,))
    wide = [x.float(), given[1].float(), given[2].float(), *given[3:]]
    exact = run(oracle, wide, parts, True, summed, (0,))
    for one, other in zip(found, exact, strict=True):
        if one.dim() < 4:
            torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-4)
            continue
        assert one.dtype == dtype
        assert one.is_contiguous(memory_format=torch.channels_last)
        torch.testing.assert_close(one, stored(other, dtype), rtol=1e-2, atol=1e-5)


@pytest.mark.parametrize("deviation", [1.0, 1e-3])
def test_statistics_of_a_far_mean_are_those_of_a_near_one(device, deviation):
    """Sums of squares about zero would lose every digit of the variance."""
    x, *others = tensors(5, device, (8, 16, 9, 9), torch.float32, 1e4, deviation)
    found = fused.forward(x, 2, *others[2:], EPS)
    variance = x.double().unflatten(0, (2, 4)).var((1, 3, 4), correction=0)
    torch.testing.assert_close(found.variance.double(), variance, rtol=1e-5, atol=0)


def test_an_outlier_in_the_first_row_costs_no_digits(device):
    x, *others = tensors(6, device, (8, 16, 9, 9), torch.float32)
    x[0, :, 0, 0] = 1e5
    x[4, :, 0, 0] = -1e5
    found = fused.forward(x, 2, *others[2:], EPS)
    by_part = x.double().unflatten(0, (2, 4))
    torch.testing.assert_close(found.mean.double(), by_part.mean((1, 3, 4)), rtol=1e-4, atol=1e-2)
    torch.testing.assert_close(
        found.variance.double(), by_part.var((1, 3, 4), correction=0), rtol=1e-5, atol=0
    )


def test_the_backward_stops_what_the_forward_stopped(device):
    """Found again from x, bit for bit: of y = 0, though the sum before ReLU may be a hair from it."""
    x, _, gradient, weight, bias = tensors(7, device, (8, 16, 9, 9), torch.float32)
    bias = -bias.abs()
    y, mean, _, rstd = fused.forward(x, 1, weight, bias, EPS, relu=True)
    again = fused.backward(gradient, x, None, mean, rstd, weight, bias, 1, True, False)
    read = fused.backward(gradient, x, y, mean, rstd, weight, bias, 1, True, True)
    assert torch.equal(again.x, read.x)
    assert torch.equal(read.residual, torch.where(y <= 0, 0.0, gradient))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_signs_serve_as_well_as_what_relu_let_through(device, dtype):
    """Of 40 channels, so that a program has none in a part of its bytes; one of them is NaN."""
    x, residual, gradient, weight, bias = tensors(4, device, (6, 40, 7, 9), dtype)
    x[:, 3] = float("nan")
    signs = empty_signs(x.shape, device)
    y, mean, _, rstd = fused.forward(x, 2, weight, bias, EPS, residual, relu=True, signs=signs)
    assert torch.equal(unpacked(signs), ~(y <= 0))
    by_y, by_signs = (
        fused.backward(gradient, x, read, mean, rstd, weight, bias, 2, True, True) for read in (y, signs)
    )
    torch.testing.assert_close(by_signs, by_y, rtol=0, atol=0, equal_nan=True)


@pytest.mark.parametrize("shape", [(2, 2, 2, 2), (2, 2, 2)])
def test_signs_that_do_not_fit_are_refused(shape):
    signs = torch.zeros(shape, dtype=torch.uint8)
    with pytest.raises(ValueError, match="signs must be contiguous uint8"):
        fused.forward(X, 1, EIGHT, EIGHT, EPS, X, relu=True, signs=signs)


def test_nan_stays(device):
    x, *others = tensors(0, device, (4, 8, 5, 5), torch.float32)
    x[0, 3] = float("nan")
    y = fused.forward(x, 2, *others[2:], EPS, relu=True).y
    assert y[:2, 3].isnan().all()
    assert y.isnan().sum() == 2 * 25


def test_other_layouts_of_residual_and_gradient_are_converted(device):
    x, residual, gradient, weight, bias = tensors(1, device, (4, 8, 5, 5), torch.float32)
    expected = run(fused, (x, residual, gradient, weight, bias), 2, True, True)
    found = run(fused, (x, residual.contiguous(), gradient.contiguous(), weight, bias), 2, True, True)
    for one, other in zip(found, expected, strict=True):
        assert torch.equal(one, other)


X = torch.zeros(2, 8, 2, 2).contiguous(memory_format=torch.channels_last)
EIGHT = torch.zeros(8)


@pytest.mark.parametrize(
    "arguments",
    [
        (X.double(), 1, EIGHT, EIGHT),
        (torch.zeros(2, 8, 2, 2), 1, EIGHT, EIGHT),
        (X[:, :4], 1, EIGHT[:4], EIGHT[:4]),
        (X[0], 1, EIGHT, EIGHT),
        (X, 3, EIGHT, EIGHT),
        (X[:, :, :1, :1].contiguous(memory_format=torch.channels_last), 2, EIGHT, EIGHT),
        (X, 1, EIGHT[:7], EIGHT),
        (X, 1, EIGHT, EIGHT.int()),
        (X, 1, EIGHT, EIGHT, EPS, X[:1]),
        (X, 1, EIGHT, torch.zeros(8, device="meta")),
    ],
)
def test_what_does_not_fit_is_refused(arguments):
    x, parts, weight, bias, *others = arguments
    with pytest.raises(ValueError, match=r"fused BatchNorm: .* must "):
        fused.forward(x, parts, weight, bias, *(others or [EPS]))


def test_a_network_trains_by_the_kernel_as_by_pytorchs_operators(device, monkeypatch):
    """With ReLU and sum in the kernel, of two parts, under the engine's own layers."""
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", False)
    torch.manual_seed(0)
    network = build_model("resnet8", 5).to(device, memory_format=torch.channels_last)
    literal = copy.deepcopy(network).double()
    random = torch.Generator().manual_seed(1)
    images = torch.rand(4, 3, 8, 8, generator=random).to(device, memory_format=torch.channels_last)
    results = []
    for net, x in ((network, images), (literal, images.double())):
        assert split_batchnorms(net)
        set_updates(net, (0, 0, 1), kernels=fused.KERNELS if net is network else None)
        logits = (NormsFused(net) if net is network else net)(x)
        logits.square().sum().backward()
        results.append([logits, *(one.grad for one in net.parameters()), *net.buffers()])
    for one, other in zip(*results, strict=True):
        torch.testing.assert_close(one.double(), other.double(), rtol=1e-4, atol=1e-4)
