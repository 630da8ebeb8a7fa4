"""The loss kernel against F.cross_entropy and F.kl_div with autograd."""

import warnings
from dataclasses import replace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.nn import functional as F

from fastpeer.kernels.distill_loss import distill_loss
from fastpeer.kernels.terms import CrossEntropy, Divergence, LogitDistance

FORWARDS = 3
PEERAID = (
    CrossEntropy(0, 1.0),
    Divergence(0, 1, 0.1, 1.0, "mean", True),
    Divergence(1, 0, 35.0, 5.0, "mean", False),
    Divergence(1, 2, 20.0, 5.0, "batchmean", True),
)

index, sample_weight = st.integers(0, FORWARDS - 1), st.none() | st.integers(0, 1)
weight, reduction = st.floats(0, 10), st.sampled_from(["mean", "batchmean"])
terms = st.one_of(
    st.builds(CrossEntropy, index, weight, sample_weight),
    st.builds(Divergence, index, index, weight, st.floats(0.5, 10), reduction, st.booleans(), sample_weight),
    st.builds(LogitDistance, index, index, weight, reduction, st.booleans(), sample_weight),
)


def random_logits(seed, batch, classes, spread):
    random = torch.Generator().manual_seed(seed)
    logits = [
        spread * torch.randn(batch, classes, generator=random, dtype=torch.float64) for _ in range(FORWARDS)
    ]
    return logits, torch.randint(0, classes, (batch,), generator=random)


def literal(logits, labels, terms, sample_weights=()):
    """Values and gradients as plain PyTorch finds them, in the dtype of the logits."""
    leaves = [one.clone().requires_grad_() for one in logits]
    values = [literal_value(term, leaves, labels, sample_weights) for term in terms]
    gradients = torch.autograd.grad(sum(values), leaves, materialize_grads=True, allow_unused=True)
    return torch.stack(values).detach(), gradients


def literal_value(term, leaves, labels, sample_weights):
    prediction = leaves[term.prediction]
    # PyTorch's reductions know no sample weights: the same samples, each by itself.
    if term.sample_weight is not None:
        one_by_one = (
            literal_value(
                replace(term, sample_weight=None), [leaf[i : i + 1] for leaf in leaves], labels[i : i + 1], ()
            )
            for i in range(len(labels))
        )
        weighted = [
            w * value for w, value in zip(sample_weights[term.sample_weight], one_by_one, strict=True)
        ]
        return sum(weighted) / len(labels)
    if isinstance(term, CrossEntropy):
        return term.weight * F.cross_entropy(prediction, labels)
    target = leaves[term.target] if term.target_grad else leaves[term.target].detach()
    if isinstance(term, LogitDistance):
        factor = 1 if term.reduction == "mean" else prediction.shape[1]
        return term.weight * factor * F.mse_loss(prediction, target)
    softened = torch.log_softmax(prediction / term.temperature, 1)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # reduction="mean" is not the mathematical KL
        kl = F.kl_div(softened, torch.softmax(target / term.temperature, 1), reduction=term.reduction)
    return term.weight * term.temperature**2 * kl


@given(
    terms=st.lists(terms, min_size=1, max_size=5),
    seed=st.integers(0, 2**32),
    batch=st.integers(1, 6),
    classes=st.integers(2, 20),
    spread=st.floats(0, 20),
)
def test_values_and_gradients_of_any_table_are_autograds(terms, seed, batch, classes, spread):
    logits, labels = random_logits(seed, batch, classes, spread)
    sample_weights = [one[:, 0].abs() for one in logits[:2]]
    values, gradients, correct = distill_loss(logits, labels, terms, 1.0, sample_weights)
    true_values, true_gradients = literal(logits, labels, terms, sample_weights)
    assert correct.tolist() == [int((one.argmax(1) == labels).sum()) for one in logits]
    torch.testing.assert_close(values, true_values, rtol=1e-10, atol=1e-9)
    torch.testing.assert_close(gradients, true_gradients, rtol=1e-10, atol=1e-9)


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_is_at_most_twice_as_far_off_as_plain_pytorch(dtype, seed):
    logits, labels = random_logits(seed, batch=6, classes=10, spread=3)
    logits = [one.to(dtype) for one in logits]
    values, gradients, _ = distill_loss(logits, labels, PEERAID)
    plain_values, plain_gradients = literal(logits, labels, PEERAID)
    true_values, true_gradients = literal([one.double() for one in logits], labels, PEERAID)
    assert values.dtype == torch.float32
    for ours, plain, true in (
        (values, plain_values, true_values),
        *zip(gradients, plain_gradients, true_gradients, strict=True),
    ):
        assert (ours - true).abs().max() <= 2 * (plain - true).abs().max()
    assert {one.dtype for one in gradients} == {dtype}


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
@pytest.mark.parametrize(
    "row", [[1e4, -1e4, 0.0], [-1e4, -1e4, 1e4], [7.0, 7.0, 7.0], [120.0, 0.0, -5.0]], ids=str
)
def test_extreme_logits_stay_finite(row, dtype):
    one = torch.tensor([row], dtype=dtype)
    terms = (*PEERAID, Divergence(0, 2, 1.0, 1.0, "batchmean", True))
    values, gradients, _ = distill_loss([one, one.flip(1), one], torch.tensor([1]), terms)
    assert values.isfinite().all()
    assert all(gradient.isfinite().all() for gradient in gradients)


def test_equal_logits_diverge_by_nothing():
    one = torch.randn(4, 10, dtype=torch.float64)
    values, (first, second), _ = distill_loss([one, one], torch.zeros(4).long(), PEERAID[1:2])
    torch.testing.assert_close(values, torch.zeros(1, dtype=torch.float64))
    torch.testing.assert_close((first, second), (torch.zeros_like(one), torch.zeros_like(one)))


@pytest.mark.parametrize("scale", [1024.0, torch.tensor(1024.0)], ids=["number", "tensor"])
def test_scale_enlarges_gradients_before_they_are_rounded_and_leaves_values_alone(scale):
    logits, labels = random_logits(0, batch=4, classes=10, spread=1)
    # Gradients that float16 would round to zero.
    terms = [CrossEntropy(0, 1e-7)]
    halves = [one.half() for one in logits[:1]]
    values, (scaled,), _ = distill_loss(halves, labels, terms, scale)
    true_values, (true,), _ = distill_loss([halves[0].double()], labels, terms)
    torch.testing.assert_close(values, true_values.float())
    torch.testing.assert_close(scaled, (1024 * true).half(), rtol=1e-3, atol=1e-7)
    assert scaled.all()


def test_sample_weights_may_be_of_lower_precision_than_the_logits():
    logits, labels = random_logits(0, batch=4, classes=10, spread=1)
    terms = [CrossEntropy(0, 1.0, sample_weight=0)]
    halves = torch.tensor([0.5, 1.0, 0.0, 2.0]).half()
    ours, expected = (
        distill_loss(logits, labels, terms, sample_weights=[one]) for one in (halves, halves.double())
    )
    torch.testing.assert_close(ours, expected, rtol=0, atol=0)


def test_correct_counts_the_first_of_equal_logits():
    logits = torch.tensor([[1.0, 1.0], [0.0, 1.0], [1.0, 1.0]])
    correct = distill_loss([logits], torch.tensor([0, 1, 1]), [CrossEntropy(0, 1.0)]).correct
    assert correct.dtype == torch.int64
    assert correct.tolist() == [2]
