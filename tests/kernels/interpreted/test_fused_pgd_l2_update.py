"""The fused attack step in the L2 ball against its oracle, whose sums it makes in another order."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from fastpeer.kernels.fused.pgd_l2_update import pgd_l2_update
from fastpeer.kernels.pgd_l2_update import pgd_l2_update as oracle
from tests.kernels.accuracy import assert_at_most_twice, errors, stored

FORMATS = [torch.contiguous_format, torch.channels_last]
TOLERANCE = {torch.float32: 2e-7, torch.float64: 5e-16}


def tensors(seed, device, shape=(3, 3, 17, 9), dtype=torch.float32):
    """An iterate, perhaps outside the ball and [0, 1], a gradient with zeros, and images."""
    random = torch.Generator().manual_seed(seed)
    images = torch.rand(shape, generator=random, dtype=dtype)
    gradient = torch.randn(shape, generator=random, dtype=dtype)
    gradient[gradient.abs() < 0.2] *= 0.0
    adversarial = images + 0.1 * torch.randn(shape, generator=random, dtype=dtype)
    return [one.to(device) for one in (adversarial, gradient, images)]


def norms(images):
    return images.double().flatten(1).norm(dim=1)


@given(
    seed=st.integers(0, 2**32),
    step_size=st.floats(0, 2) | st.just(0.1),
    epsilon=st.floats(0, 2) | st.just(128 / 255),
    dtype=st.sampled_from([torch.float32, torch.float64]),
    gradient_dtype=st.sampled_from([torch.float64, torch.float32, torch.bfloat16, torch.float16]),
)
def test_step_is_the_oracles_and_stays_in_the_ball(device, seed, step_size, epsilon, dtype, gradient_dtype):
    adversarial, gradient, images = tensors(seed, device, dtype=dtype)
    arguments = (adversarial, gradient.to(gradient_dtype), images, step_size, epsilon)
    updated, low = pgd_l2_update(*arguments)
    assert low is updated
    assert updated.dtype == dtype
    tolerance = TOLERANCE[dtype]
    torch.testing.assert_close(updated, oracle(*arguments)[0], rtol=0, atol=tolerance)
    assert (norms(updated - images) <= epsilon * (1 + 4 * tolerance) + tolerance).all()
    assert 0 <= updated.min() <= updated.max() <= 1


@pytest.mark.parametrize("shape", [(4, 3, 32, 32), (2, 3, 64, 64), (5, 3, 5, 7)])
@pytest.mark.parametrize("gradient_dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_error_is_at_most_twice_plain_pytorchs(device, shape, gradient_dtype):
    adversarial, gradient, images = tensors(1, device, shape)
    gradient = gradient.to(gradient_dtype)
    ours, _ = pgd_l2_update(adversarial, gradient, images, 0.1, 0.5)
    plain, _ = oracle(adversarial, gradient, images, 0.1, 0.5)
    truth, _ = oracle(*(one.double() for one in (adversarial, gradient, images)), 0.1, 0.5)
    assert_at_most_twice(errors([ours], [plain], [truth]))


@pytest.mark.parametrize("power", [-120, 0, 120])
def test_gradients_of_any_scale_are_a_whole_step(device, power):
    adversarial, gradient, images = tensors(0, device)
    expected, _ = pgd_l2_update(adversarial, gradient, images, 0.1, 9.0)
    scaled, _ = pgd_l2_update(adversarial, gradient * 2.0**power, images, 0.1, 9.0)
    assert torch.equal(scaled, expected)


def test_image_without_gradient_inside_the_ball_stays(device):
    _, gradient, images = tensors(0, device)
    gradient[1] = 0
    updated, _ = pgd_l2_update(images, gradient, images, 0.1, 0.5)
    assert torch.equal(updated[1], images[1])
    assert not torch.equal(updated[0], images[0])


@pytest.mark.parametrize("copy", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("memory_format", FORMATS)
def test_copy_is_the_result_in_its_dtype_and_memory_format(device, memory_format, copy):
    arguments = [one.contiguous(memory_format=memory_format) for one in tensors(0, device)]
    updated, low = pgd_l2_update(*arguments, 0.1, 0.5, copy=copy)
    torch.testing.assert_close(updated, oracle(*arguments, 0.1, 0.5)[0], rtol=0, atol=2e-7)
    assert torch.equal(low, stored(updated, copy))
    for one in (updated, low):
        assert one.is_contiguous(memory_format=memory_format)


@pytest.mark.parametrize("first", FORMATS)
def test_other_memory_formats_are_converted_to_the_iterates(device, first):
    adversarial, gradient, images = tensors(0, device)
    expected = oracle(adversarial, gradient, images, 0.1, 0.5)[0]
    (other,) = set(FORMATS) - {first}
    updated, _ = pgd_l2_update(
        adversarial.contiguous(memory_format=first),
        gradient.contiguous(memory_format=other),
        images.contiguous(memory_format=other),
        0.1,
        0.5,
    )
    torch.testing.assert_close(updated, expected, rtol=0, atol=2e-7)
    assert updated.is_contiguous(memory_format=first)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
def test_nan_is_counted_and_moves_nothing(device, dtype):
    adversarial, gradient, images = tensors(0, device)
    gradient = gradient.to(dtype)
    holes = torch.rand(gradient.shape, device=device) < 0.2
    without = gradient.masked_fill(holes, 0)
    gradient[holes] = float("nan")
    for count in (torch.tensor(5, device=device), torch.tensor([5], device=device)):
        updated, _ = pgd_l2_update(adversarial, gradient, images, 0.1, 0.5, nonfinite_count=count)
        assert torch.equal(updated, pgd_l2_update(adversarial, without, images, 0.1, 0.5)[0])
        assert int(count) == 5 + int(holes.sum())


def test_infinite_and_tiny_gradients_are_the_oracles(device):
    infinite, tiny = [float("inf"), -float("inf"), 1.0, 0.0], [1e-45, -1e-45, 0.0, -0.0]
    gradient = torch.tensor([infinite, tiny], device=device)
    images = torch.full_like(gradient, 0.5)
    count = torch.zeros(1, dtype=torch.int64, device=device)
    updated, _ = pgd_l2_update(images, gradient, images, 0.25, 0.5, nonfinite_count=count)
    assert count.item() == 2
    torch.testing.assert_close(updated, oracle(images, gradient, images, 0.25, 0.5)[0], rtol=0, atol=1e-7)
    assert (updated[:, :2] != 0.5).all()
    gradient = torch.tensor([[1e-300, -1e-300]], dtype=torch.float64, device=device)
    images = torch.full((1, 2), 0.5, device=device)
    side = 0.125 * 0.5**0.5
    assert pgd_l2_update(images, gradient, images, 0.125, 0.5)[0].tolist() == [
        pytest.approx([0.5 + side, 0.5 - side], abs=1e-7)
    ]


def test_nan_in_the_iterate_stays(device):
    adversarial, gradient, images = tensors(0, device)
    adversarial[0, 0, 0, 0] = float("nan")
    updated = pgd_l2_update(adversarial, gradient, images, 0.1, 0.5)[0]
    expected = oracle(adversarial, gradient, images, 0.1, 0.5)[0]
    torch.testing.assert_close(updated, expected, rtol=0, atol=2e-7, equal_nan=True)


def test_what_does_not_fit_is_refused():
    image = torch.zeros(1, 3, 2, 2)
    for arguments in ((image.half(), image, image.half()), (image, image[:, :2], image)):
        with pytest.raises(ValueError, match=r"fused attack step: .* must be"):
            pgd_l2_update(*arguments, 0.1, 0.5)
