"""The fused attack step against its oracle, bit for bit."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from fastpeer.kernels.fused.pgd_update import pgd_update
from fastpeer.kernels.pgd_update import pgd_update as oracle
from tests.kernels.accuracy import stored

FORMATS = [torch.contiguous_format, torch.channels_last]


def tensors(seed, device, shape=(3, 3, 17, 9), dtype=torch.float32):
    """An iterate, perhaps outside the ball and [0, 1], a gradient with zeros of both signs, and images."""
    random = torch.Generator().manual_seed(seed)
    images = torch.rand(shape, generator=random, dtype=dtype)
    gradient = torch.randn(shape, generator=random, dtype=dtype)
    gradient[gradient.abs() < 0.2] *= 0.0
    adversarial = images + 0.1 * torch.randn(shape, generator=random, dtype=dtype)
    return [one.to(device) for one in (adversarial, gradient, images)]


@given(
    seed=st.integers(0, 2**32),
    step_size=st.floats(0, 0.5) | st.just(2 / 255),
    epsilon=st.floats(0, 0.5) | st.just(8 / 255),
    dtype=st.sampled_from([torch.float32, torch.float64]),
    gradient_dtype=st.sampled_from([torch.float64, torch.float32, torch.bfloat16, torch.float16]),
)
def test_step_is_the_oracles(device, seed, step_size, epsilon, dtype, gradient_dtype):
    adversarial, gradient, images = tensors(seed, device, dtype=dtype)
    arguments = (adversarial, gradient.to(gradient_dtype), images, step_size, epsilon)
    updated, low = pgd_update(*arguments)
    assert low is updated
    assert updated.dtype == dtype
    assert torch.equal(updated, oracle(*arguments)[0])


@pytest.mark.parametrize("copy", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("memory_format", FORMATS)
def test_copy_is_the_result_in_its_dtype_and_memory_format(device, memory_format, copy):
    arguments = [one.contiguous(memory_format=memory_format) for one in tensors(0, device)]
    updated, low = pgd_update(*arguments, 0.03, 0.1, copy=copy)
    assert torch.equal(updated, oracle(*arguments, 0.03, 0.1)[0])
    assert torch.equal(low, stored(updated, copy))
    for one in (updated, low):
        assert one.is_contiguous(memory_format=memory_format)


@pytest.mark.parametrize("first", FORMATS)
def test_other_memory_formats_are_converted_to_the_iterates(device, first):
    adversarial, gradient, images = tensors(0, device)
    expected = oracle(adversarial, gradient, images, 0.03, 0.1)[0]
    (other,) = set(FORMATS) - {first}
    updated, _ = pgd_update(
        adversarial.contiguous(memory_format=first),
        gradient.contiguous(memory_format=other),
        images[:, :, ::1].contiguous(memory_format=other),
        0.03,
        0.1,
    )
    assert torch.equal(updated, expected)
    assert updated.is_contiguous(memory_format=first)


def test_gaps_in_memory_are_closed(device):
    wide = [one.transpose(2, 3) for one in tensors(0, device, (2, 3, 8, 16))]
    gaps = [one[:, :, ::2] for one in wide]
    assert torch.equal(pgd_update(*gaps, 0.03, 0.1)[0], oracle(*gaps, 0.03, 0.1)[0])


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
def test_nan_is_counted_and_moves_nothing(device, dtype):
    adversarial, gradient, images = tensors(0, device)
    gradient = gradient.to(dtype)
    holes = torch.rand(gradient.shape, device=device) < 0.2
    gradient[holes] = float("nan")
    counts = [torch.tensor(5, device=device), torch.tensor([5], device=device)]
    for count in counts:
        updated, _ = pgd_update(adversarial, gradient, images, 0.03, 0.1, nonfinite_count=count)
        assert torch.equal(updated, oracle(adversarial, gradient, images, 0.03, 0.1)[0])
        assert int(count) == 5 + int(holes.sum())
    still = pgd_update(adversarial, torch.zeros_like(gradient), images, 0.03, 0.1)[0]
    assert torch.equal(updated[holes], still[holes])


def test_infinite_gradient_is_counted_and_a_step_and_the_smallest_is_one_too(device):
    values = [float("inf"), -float("inf"), 1e-45, -1e-45, 0.0, -0.0]
    gradient = torch.tensor(values, device=device)
    images = torch.full_like(gradient, 0.5)
    signs = torch.tensor([1, -1, 1, -1, 0, 0], device=device)
    count = torch.zeros(1, dtype=torch.int64, device=device)
    updated, _ = pgd_update(images, gradient, images, 0.125, 0.5, nonfinite_count=count)
    assert torch.equal(updated, 0.5 + 0.125 * signs)
    assert count.item() == 2


def test_tiny_float64_gradient_keeps_its_sign(device):
    gradient = torch.tensor([1e-300, -1e-300], dtype=torch.float64, device=device)
    images = torch.full((2,), 0.5, device=device)
    assert pgd_update(images, gradient, images, 0.125, 0.5)[0].tolist() == [0.625, 0.375]


def test_nan_in_the_iterate_stays(device):
    adversarial, gradient, images = tensors(0, device)
    adversarial[0, 0, 0, 0] = float("nan")
    updated = pgd_update(adversarial, gradient, images, 0.03, 0.1)[0]
    expected = oracle(adversarial, gradient, images, 0.03, 0.1)[0]
    torch.testing.assert_close(updated, expected, rtol=0, atol=0, equal_nan=True)


def test_arguments_are_left_alone(device):
    arguments = tensors(0, device)
    before = [one.clone() for one in arguments]
    pgd_update(*arguments, 0.03, 0.1, copy=torch.bfloat16)
    assert all(torch.equal(one, other) for one, other in zip(arguments, before, strict=True))


ONE = torch.zeros(1, 3, 2, 2)


@pytest.mark.parametrize(
    ("arguments", "options"),
    [
        ((ONE.half(), ONE, ONE.half()), {}),
        ((ONE, ONE, ONE.double()), {}),
        ((ONE, ONE.int(), ONE), {}),
        ((ONE, ONE[:, :2], ONE), {}),
        ((ONE[:0], ONE[:0], ONE[:0]), {}),
        ((ONE, ONE, torch.zeros(1, 3, 2, 2, device="meta")), {}),
        ((ONE, ONE, ONE), {"nonfinite_count": torch.zeros((), dtype=torch.int32)}),
        ((ONE, ONE, ONE), {"nonfinite_count": torch.zeros(2, dtype=torch.int64)}),
    ],
)
def test_what_does_not_fit_is_refused(arguments, options):
    with pytest.raises(ValueError, match=r"fused attack step: .* must be"):
        pgd_update(*arguments, 0.03, 0.1, **options)
