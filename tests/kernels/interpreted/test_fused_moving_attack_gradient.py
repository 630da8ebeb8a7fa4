"""The fused gradients at the logits of both networks against their oracle."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from fastpeer.kernels.fused.moving_attack_gradient import moving_attack_gradient
from fastpeer.kernels.fused.tile import MAX_CLASSES
from fastpeer.kernels.moving_attack_gradient import moving_attack_gradient as oracle
from tests.kernels.accuracy import assert_at_most_twice, errors, stored
from tests.kernels.tables import LOGITS, random_batch

DTYPES = [torch.float32, torch.bfloat16, torch.float16]


def pair(device, size, classes, seed=0, spread=3.0):
    return random_batch(seed, size, classes, spread, forwards=2).to(device).logits


def assert_as_exact_as_pytorch(logits, target_logits, scale=1.0):
    both = logits, target_logits
    ours = moving_attack_gradient(*both, scale)
    assert [(one.dtype, one.shape) for one in ours] == [(one.dtype, one.shape) for one in both]
    true = oracle(*(one.double() for one in both), scale)
    plain = oracle(*(one.float() for one in both), scale)
    plain = [stored(one, mine.dtype) for one, mine in zip(plain, ours, strict=True)]
    assert_at_most_twice(errors(ours, plain, true))


@pytest.mark.parametrize("target_dtype", DTYPES)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("classes", "size"), LOGITS)
def test_every_pair_of_dtypes(device, classes, size, dtype, target_dtype):
    student, teacher = pair(device, size, classes)
    assert_as_exact_as_pytorch(student.to(dtype), teacher.to(target_dtype))


@given(
    seed=st.integers(0, 2**32),
    size=st.integers(1, 40),
    classes=st.integers(1, 40),
    spread=st.floats(0, 20),
)
def test_any_logits(device, seed, size, classes, spread):
    ours = moving_attack_gradient(*(one.float() for one in pair(device, size, classes, seed, spread)))
    exact = (one.float().double() for one in pair(device, size, classes, seed, spread))
    for one, true in zip(ours, oracle(*exact), strict=True):
        # Differences of logarithms are as large as the spread allows.
        torch.testing.assert_close(one.double(), true, rtol=0, atol=1e-6 * (1 + spread))
        assert one.sum(1).abs().max() < 1e-5 * (1 + spread)


@pytest.mark.parametrize("which", [(0,), (1,), (0, 1)])
def test_float64_is_computed_in_float64(device, which):
    logits = [one if i in which else one.float() for i, one in enumerate(pair(device, 7, 10))]
    ours, expected = moving_attack_gradient(*logits, 0.1), oracle(*logits, 0.1)
    for one, other, source in zip(ours, expected, logits, strict=True):
        assert one.dtype == source.dtype
        tolerance = 1e-14 if source.dtype == torch.float64 else 1e-8
        torch.testing.assert_close(one, other, rtol=0, atol=tolerance)


@pytest.mark.parametrize("dtype", DTYPES)
def test_extreme_logits(device, dtype):
    rows = [[1e4, -1e4, 0.0], [-1e4, -1e4, 1e4], [7.0, 7.0, 7.0], [120.0, 0.0, -5.0]]
    logits = torch.tensor(rows, dtype=dtype, device=device)
    for teacher in (logits.flip(1), logits.flip(0), -logits):
        assert all(one.isfinite().all() for one in moving_attack_gradient(logits, teacher))
        assert_as_exact_as_pytorch(logits, teacher)


def test_a_sure_teachers_gradient_keeps_its_digits(device):
    student, teacher = (
        torch.tensor([[3.0, 1.0, -2.0]], device=device),
        torch.tensor([[20.0, 0.0, 4.0]]).to(device),
    )
    true = oracle(student.double(), teacher.double())[1]
    ours = moving_attack_gradient(student, teacher)[1]
    torch.testing.assert_close(ours.double(), true, rtol=1e-6, atol=0)


@pytest.mark.filterwarnings("ignore:.*encountered:RuntimeWarning")  # NumPy's, in the interpreter
@pytest.mark.parametrize("which", [0, 1])
def test_nan_shows_in_its_row(device, which):
    logits = [one.float() for one in pair(device, 5, 10)]
    logits[which][3, 4] = float("nan")
    for one in moving_attack_gradient(*logits):
        assert one.isnan().any(1).tolist() == [False, False, False, True, False]


def test_equal_logits_give_nothing_to_climb(device):
    for dtype in DTYPES:
        one = torch.randn(5, 100, device=device).to(dtype)
        assert not torch.stack(moving_attack_gradient(one, one.clone())).any()


def test_scale_is_applied_before_rounding(device):
    student = torch.tensor([[0.0, 20.0]], device=device).half()
    teacher = torch.tensor([[0.0, 21.0]], device=device).half()
    assert not torch.stack(moving_attack_gradient(student, teacher)).any()
    # In the other column, float32 cannot tell the student's probability from the teacher's: both round to 1.
    assert torch.stack(moving_attack_gradient(student, teacher, 1024.0))[:, 0, 0].all()
    assert_as_exact_as_pytorch(student, teacher, 1024)


def test_what_is_not_contiguous_is_copied(device):
    student, teacher = torch.randn(10, 6, device=device), torch.randn(10, 12, device=device)
    strided = student.t(), teacher.t()[::2]
    expected = moving_attack_gradient(*(one.contiguous() for one in strided))
    torch.testing.assert_close(moving_attack_gradient(*strided), expected, rtol=0, atol=0)


LOGITS = torch.zeros(2, 10)


@pytest.mark.parametrize(
    ("logits", "target_logits"),
    [
        (LOGITS.long(), LOGITS),
        (LOGITS, LOGITS.long()),
        (LOGITS[0], LOGITS[0]),
        (torch.zeros(2, MAX_CLASSES + 1), torch.zeros(2, MAX_CLASSES + 1)),
        (LOGITS, torch.zeros(2, 9)),
        (LOGITS, torch.zeros(3, 10)),
        (LOGITS, LOGITS.to("meta")),
    ],
)
def test_what_does_not_fit_is_refused(logits, target_logits):
    with pytest.raises(ValueError, match=r"fused moving attack gradient: .* must be"):
        moving_attack_gradient(logits, target_logits)
