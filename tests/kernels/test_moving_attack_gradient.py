"""The gradients at the logits of both networks that AdaAD's attack climbs."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.nn import functional as F

from fastpeer.kernels.attack_gradient import attack_gradient
from fastpeer.kernels.moving_attack_gradient import moving_attack_gradient

DTYPES = [torch.float64, torch.float32, torch.bfloat16, torch.float16]


def random_logits(seed=0, batch=5, classes=7, spread=3.0):
    random = torch.Generator().manual_seed(seed)
    return [spread * torch.randn(batch, classes, generator=random, dtype=torch.float64) for _ in range(2)]


some_logits = st.builds(
    random_logits,
    seed=st.integers(0, 2**32),
    batch=st.integers(1, 6),
    classes=st.integers(1, 20),
    spread=st.floats(0, 20),
)


@given(logits=some_logits, scale=st.floats(0.1, 100))
def test_they_are_autograds_of_the_summed_divergence(logits, scale):
    student, teacher = (one.clone().requires_grad_() for one in logits)
    loss = F.kl_div(
        torch.log_softmax(student, 1), torch.log_softmax(teacher, 1), reduction="sum", log_target=True
    )
    expected = torch.autograd.grad(scale * loss, (student, teacher))
    ours = moving_attack_gradient(*logits, scale)
    torch.testing.assert_close(ours, expected, rtol=1e-12, atol=1e-12 * scale)


@given(logits=some_logits, shifts=st.tuples(st.floats(-50, 50), st.floats(-50, 50)))
def test_rows_add_up_to_nothing_and_shifted_logits_change_nothing(logits, shifts):
    ours = moving_attack_gradient(*logits)
    for one in ours:
        torch.testing.assert_close(one.sum(1), torch.zeros_like(one[:, 0]), rtol=0, atol=1e-12)
    shifted = moving_attack_gradient(*(one + shift for one, shift in zip(logits, shifts, strict=True)))
    torch.testing.assert_close(shifted, ours, rtol=0, atol=1e-11)


@given(logits=some_logits, dtype=st.sampled_from(DTYPES))
def test_equal_logits_give_nothing_to_climb(logits, dtype):
    one = logits[0].to(dtype)
    assert not any(gradient.any() for gradient in moving_attack_gradient(one, one.clone()))


def test_at_the_student_it_is_the_gradient_towards_fixed_probabilities():
    student, teacher = random_logits()
    expected = attack_gradient(student, torch.softmax(teacher, 1), 8.0)
    assert torch.equal(moving_attack_gradient(student, teacher, 8.0)[0], expected)


@pytest.mark.parametrize("target_dtype", DTYPES[1:])
@pytest.mark.parametrize("dtype", DTYPES[1:])
def test_half_precision_is_computed_in_float32_and_scaled_before_it_is_rounded(dtype, target_dtype):
    student, teacher = random_logits()
    student, teacher = student.to(dtype), teacher.to(target_dtype)
    expected = moving_attack_gradient(student.float(), teacher.float(), 1024.0)
    ours = moving_attack_gradient(student, teacher, 1024.0)
    assert torch.equal(ours[0], expected[0].to(dtype))
    assert torch.equal(ours[1], expected[1].to(target_dtype))


@pytest.mark.parametrize("which", [0, 1])
def test_float64_on_one_side_makes_both_exact(which):
    logits = random_logits()
    logits[which] = logits[which].float()
    expected = moving_attack_gradient(*(one.double() for one in logits))
    ours = moving_attack_gradient(*logits)
    assert torch.equal(ours[1 - which], expected[1 - which])
    assert torch.equal(ours[which], expected[which].float())


@pytest.mark.parametrize("dtype", DTYPES)
def test_extreme_logits_stay_finite(dtype):
    rows = torch.tensor([[1e4, -1e4, 0.0], [-1e4, -1e4, 1e4], [7.0, 7.0, 7.0], [120.0, 0.0, -5.0]])
    for teacher in (rows.flip(1), rows.flip(0), -rows):
        assert all(one.isfinite().all() for one in moving_attack_gradient(rows.to(dtype), teacher.to(dtype)))
