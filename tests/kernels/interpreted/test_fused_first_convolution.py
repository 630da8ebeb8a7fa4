"""The first convolution: no farther from float64 than twice what plain PyTorch is."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from fastpeer.kernels.first_convolution import first_convolution as oracle
from fastpeer.kernels.first_convolution import first_convolution_gradient as gradient_oracle
from fastpeer.kernels.fused.first_convolution import (
    first_convolution,
    first_convolution_gradient,
    first_convolution_step,
)
from fastpeer.kernels.pgd_update import pgd_update
from tests.kernels.accuracy import assert_at_most_twice, errors, stored

LAYOUT = torch.channels_last
SHAPES = [(2, 3, 64, 8, 8), (3, 1, 16, 5, 7), (1, 4, 48, 16, 16), (2, 2, 32, 1, 3), (1, 3, 160, 4, 1)]
"""Images, channels of them and of the result, height, width."""


def drawn(seed, device, shape):
    batch, into, out, height, width = shape
    random = torch.Generator().manual_seed(seed)
    images = torch.rand(batch, into, height, width, generator=random)
    weight = torch.randn(out, into, 3, 3, generator=random) / 5
    bias = torch.randn(out, generator=random)
    gradient = torch.randn(batch, out, height, width, generator=random)
    images, weight, gradient = (
        tensor.to(device, memory_format=LAYOUT) for tensor in (images, weight, gradient)
    )
    return images, weight, bias.to(device), gradient


def without_tf32():
    return torch.backends.cudnn.flags(allow_tf32=False)


@given(seed=st.integers(0, 99), shape=st.sampled_from(SHAPES), relu=st.booleans())
def test_forward(device, seed, shape, relu):
    images, weight, bias, _ = drawn(seed, device, shape)
    found = first_convolution(images, weight, bias, relu, torch.float32)
    assert found.is_contiguous(memory_format=LAYOUT)
    truth = oracle(images.double(), weight.double(), bias.double(), relu, torch.float64)
    with without_tf32():
        plain = oracle(images, weight, bias, relu, torch.float32)
    assert_at_most_twice(errors([found], [plain], [truth]))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_forward_rounds_once(device, dtype):
    images, weight, bias, _ = drawn(0, device, SHAPES[0])
    single = first_convolution(images, weight, bias, True, torch.float32)
    assert torch.equal(first_convolution(images, weight, bias, True, dtype), stored(single, dtype))


@given(
    seed=st.integers(0, 99), shape=st.sampled_from(SHAPES),
    dtype=st.sampled_from([torch.float16, torch.float32]),
)  # fmt: skip
def test_back(device, seed, shape, dtype):
    _, weight, _, gradient = drawn(seed, device, shape)
    gradient = gradient.to(dtype)
    found = first_convolution_gradient(gradient, weight)
    assert found.dtype == dtype
    assert found.is_contiguous(memory_format=LAYOUT)
    truth = gradient_oracle(gradient.double(), weight.to(dtype).double())
    with without_tf32():
        plain = torch.nn.functional.conv_transpose2d(gradient, weight.to(dtype), padding=1)
    assert_at_most_twice(errors([found], [plain], [truth]))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_a_step_is_the_gradient_and_then_the_update(device, dtype):
    images, weight, _, gradient = drawn(0, device, SHAPES[0])
    gradient = gradient.to(dtype)
    gradient[1, 0, 7, 0] = float("nan")
    moving = (images + 0.02 * torch.randn(images.shape).to(images)).contiguous(memory_format=LAYOUT)
    expected_count, count = (torch.zeros(1, dtype=torch.int64, device=device) for _ in range(2))
    climb = first_convolution_gradient(gradient, weight)
    ball = images, 2 / 255, 8 / 255
    expected = pgd_update(moving, climb, *ball, nonfinite_count=expected_count)[0]
    found = first_convolution_step(gradient, weight, moving, *ball, count)
    assert torch.equal(found, expected)
    assert count.item() == expected_count.item() == 12
    assert torch.equal(first_convolution_step(gradient, weight, moving, *ball), expected)


def test_other_memory_formats_are_converted(device):
    images, weight, bias, gradient = drawn(0, device, SHAPES[0])
    expected = first_convolution(images, weight, bias, True, torch.float32)
    found = first_convolution(images.contiguous(), weight.contiguous(), bias, True, torch.float32)
    assert torch.equal(found, expected)
    expected = first_convolution_gradient(gradient, weight)
    assert torch.equal(first_convolution_gradient(gradient.contiguous(), weight.contiguous()), expected)


def test_a_pixel_that_is_nan_stays_among_its_neighbours(device):
    images, weight, bias, gradient = drawn(0, device, SHAPES[0])
    images[1, 0, 0, 7] = gradient[1, 0, 7, 0] = float("nan")
    spoilt = first_convolution(images, weight, bias, True, torch.float32).isnan()
    assert spoilt.all(1).nonzero().tolist() == [[1, y, x] for y in (0, 1) for x in (6, 7)]
    assert spoilt.any(1).sum() == 4
    spoilt = first_convolution_gradient(gradient, weight).isnan().any(1)
    assert spoilt.nonzero().tolist() == [[1, y, x] for y in (6, 7) for x in (0, 1)]


IMAGES, WEIGHT, BIAS = torch.zeros(1, 3, 2, 2), torch.zeros(16, 3, 3, 3), torch.zeros(16)


@pytest.mark.parametrize(
    "arguments",
    [
        (IMAGES.double(), WEIGHT, BIAS, True, torch.float32),
        (IMAGES[:, :2], WEIGHT, BIAS, True, torch.float32),
        (IMAGES[:0], WEIGHT, BIAS, True, torch.float32),
        (torch.zeros(1, 3, 2, 300), WEIGHT, BIAS, True, torch.float32),
        (torch.zeros(1, 5, 2, 2), torch.zeros(16, 5, 3, 3), BIAS, True, torch.float32),
        (IMAGES, torch.zeros(16, 3, 7, 7), BIAS, True, torch.float32),
        (IMAGES, WEIGHT[:8], BIAS[:8], True, torch.float32),
        (IMAGES, WEIGHT, BIAS[:8], True, torch.float32),
        (IMAGES, WEIGHT, BIAS, True, torch.float64),
        (IMAGES, WEIGHT, BIAS.to("meta"), True, torch.float32),
    ],
)
def test_what_does_not_fit_forward_is_refused(arguments):
    with pytest.raises(ValueError, match=r"fused first convolution: .* must "):
        first_convolution(*arguments)


@pytest.mark.parametrize(
    "changed",
    [{"images": IMAGES.double()}, {"adversarial": IMAGES[:, :2]}, {"nonfinite_count": torch.zeros(1)}],
)
def test_what_does_not_fit_of_a_step_is_refused(changed):
    fitting = {"adversarial": IMAGES, "images": IMAGES, "step_size": 0.1, "epsilon": 0.1}
    with pytest.raises(ValueError, match=r"fused first convolution: .* must "):
        first_convolution_step(torch.zeros(1, 16, 2, 2), WEIGHT, **{**fitting, **changed})


@pytest.mark.parametrize(
    "arguments",
    [
        (torch.zeros(1, 16, 2, 2).double(), WEIGHT),
        (torch.zeros(1, 8, 2, 2), WEIGHT),
        (torch.zeros(16, 2, 2), WEIGHT),
        (torch.zeros(1, 16, 2, 2), WEIGHT.double()),
    ],
)
def test_what_does_not_fit_on_the_way_back_is_refused(arguments):
    with pytest.raises(ValueError, match=r"fused first convolution: .* must "):
        first_convolution_gradient(*arguments)
