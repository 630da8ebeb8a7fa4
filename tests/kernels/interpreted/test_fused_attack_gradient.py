"""The fused gradient at the logits against its oracle."""

import pytest
import torch

from fastpeer.kernels.attack_gradient import attack_gradient as oracle
from fastpeer.kernels.fused.attack_gradient import attack_gradient
from fastpeer.kernels.fused.tile import MAX_CLASSES
from tests.kernels.accuracy import assert_at_most_twice, errors, stored
from tests.kernels.tables import LOGITS, random_batch

HALVES = [torch.bfloat16, torch.float16]


def assert_as_exact_as_pytorch(logits, target, scale=1.0):
    ours = attack_gradient(logits, target, scale)
    assert (ours.dtype, ours.shape) == (logits.dtype, logits.shape)
    exact = target.double() if target.is_floating_point() else target
    true = oracle(logits.double(), exact, scale)
    plain = stored(oracle(logits.float(), target, scale), logits.dtype)
    assert_at_most_twice(errors([ours], [plain], [true]))


@pytest.mark.parametrize("dtype", [torch.float32, *HALVES])
@pytest.mark.parametrize(("classes", "size"), LOGITS)
def test_probabilities_and_labels(device, classes, size, dtype):
    (logits, other), labels, _ = random_batch(0, size, classes, forwards=2).to(device)
    logits, target = logits.to(dtype), torch.softmax(other, 1)
    for one in (labels, target.float(), target.to(dtype), target):
        assert_as_exact_as_pytorch(logits, one)


def test_float64_logits_are_computed_in_float64(device):
    (logits, other), labels, _ = random_batch(0, 7, 10, forwards=2).to(device)
    for target in (labels, torch.softmax(other, 1), torch.softmax(other, 1).float()):
        ours = attack_gradient(logits, target, 0.1)
        assert ours.dtype == torch.float64
        torch.testing.assert_close(ours, oracle(logits, target, 0.1), rtol=1e-13, atol=1e-15)


@pytest.mark.parametrize("dtype", [torch.float32, *HALVES])
def test_extreme_logits(device, dtype):
    rows = [[1e4, -1e4, 0.0], [-1e4, -1e4, 1e4], [7.0, 7.0, 7.0], [120.0, 0.0, -5.0]]
    logits = torch.tensor(rows, dtype=dtype, device=device)
    assert attack_gradient(logits, torch.zeros(4, dtype=torch.int64, device=device)).isfinite().all()
    assert_as_exact_as_pytorch(logits, torch.softmax(logits.flip(1).float(), 1))


def test_scale_is_applied_before_rounding(device):
    logits = torch.tensor([[0.0, 20.0]], device=device).half()
    labels = torch.ones(1, dtype=torch.int64, device=device)
    assert not attack_gradient(logits, labels).any()
    assert attack_gradient(logits, labels, 1024.0)[0, 0]
    assert_as_exact_as_pytorch(logits, labels, 1024)


def test_label_that_is_no_class_shows_as_nan(device):
    gradient = attack_gradient(torch.zeros(3, 10, device=device), torch.tensor([0, 10, -1], device=device))
    assert gradient.isnan().all(1).tolist() == [False, True, True]


def test_what_is_not_contiguous_is_copied(device):
    logits, target = torch.randn(10, 6, device=device), torch.rand(10, 12, device=device)
    assert torch.equal(
        attack_gradient(logits.t(), target.t()[::2]),
        attack_gradient(logits.t().contiguous(), target.t()[::2].contiguous()),
    )


LOGITS = torch.zeros(2, 10)


@pytest.mark.parametrize(
    ("logits", "target"),
    [
        (LOGITS.long(), LOGITS),
        (LOGITS[0], LOGITS[0]),
        (torch.zeros(2, MAX_CLASSES + 1), torch.zeros(2, MAX_CLASSES + 1)),
        (LOGITS, torch.zeros(2, 9)),
        (LOGITS, torch.zeros(3).long()),
        (LOGITS, torch.zeros(2).int()),
        (LOGITS, torch.zeros(2, device="meta").long()),
    ],
)
def test_what_does_not_fit_is_refused(logits, target):
    with pytest.raises(ValueError, match=r"fused attack gradient: .* must be"):
        attack_gradient(logits, target)
