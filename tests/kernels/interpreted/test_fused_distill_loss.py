"""The fused loss against its oracle."""

from dataclasses import replace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from fastpeer.kernels.distill_loss import distill_loss as oracle
from fastpeer.kernels.fused.distill_loss import MAX_BATCH, MAX_CLASSES, MAX_FORWARDS, distill_loss
from fastpeer.kernels.terms import CrossEntropy, Divergence, LogitDistance
from tests.kernels.accuracy import assert_at_most_twice, errors, stored, worst
from tests.kernels.tables import EVERYTHING, PEERAID, SIX_FORWARDS, Batch, random_batch

DTYPES = [torch.float32, torch.bfloat16, torch.float16]


def evaluate(loss, batch, terms, scale=1.0):
    return loss(batch.logits, batch.labels, terms, scale, batch.sample_weights)


def assert_as_exact_as_pytorch(batch, terms, scale=1.0):
    """`batch`: logits that the kernel takes."""
    assert_at_most_twice(errors_of(batch, terms, scale))


def errors_of(batch, terms, scale=1.0):
    ours = evaluate(distill_loss, batch, terms, scale)
    plain = evaluate(oracle, batch.to(torch.float32), terms, scale)
    true = evaluate(oracle, batch.to(torch.float64), terms, scale)
    assert torch.equal(ours.correct, true.correct)
    assert ours.values.dtype == torch.float32
    assert [one.dtype for one in ours.gradients] == [one.dtype for one in batch.logits]
    rounded = [stored(one, mine.dtype) for one, mine in zip(plain.gradients, ours.gradients, strict=True)]
    return errors((ours.values, *ours.gradients), (plain.values, *rounded), (true.values, *true.gradients))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(
    ("setting", "size"),
    [
        ("cifar10", 17),
        ("cifar100", 3),
        ("tiny", 2),
        *(
            pytest.param(*one, marks=pytest.mark.soak)
            for one in (("cifar10", 128), ("cifar100", 9), ("tiny", 5))
        ),
    ],
)
def test_published_settings(device, setting, size, dtype):
    classes, terms = PEERAID[setting]
    assert_as_exact_as_pytorch(random_batch(1, size, classes).to(dtype).to(device), terms)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("size", [pytest.param(1, marks=pytest.mark.soak), 5])
@pytest.mark.parametrize(
    "classes",
    [
        2,
        pytest.param(3, marks=pytest.mark.soak),
        10,
        100,
        pytest.param(257, marks=pytest.mark.soak),
        pytest.param(200, marks=pytest.mark.soak),
        pytest.param(1000, marks=pytest.mark.soak),
    ],
)
def test_every_kind_of_term_for_any_number_of_classes(device, classes, size, dtype):
    assert_as_exact_as_pytorch(random_batch(classes, size, classes).to(dtype).to(device), EVERYTHING)


@pytest.mark.soak
def test_largest_batch(device):
    assert_as_exact_as_pytorch(random_batch(0, MAX_BATCH, 3).to(device).to(torch.float32), EVERYTHING[:5])


def test_most_forwards(device):
    batch = random_batch(0, 3, 10, forwards=MAX_FORWARDS).to(device).to(torch.float32)
    terms = [Divergence(7 - one, one, 1.0, 2.0, "mean", True) for one in range(MAX_FORWARDS)]
    assert_as_exact_as_pytorch(batch, terms)


@pytest.mark.parametrize(
    "dtype", [DTYPES[0], *(pytest.param(dtype, marks=pytest.mark.soak) for dtype in DTYPES[1:])]
)
@pytest.mark.parametrize(
    ("classes", "size"),
    [
        (10, 33),  # With fewer, twice PyTorch's error is exceeded by chance.
        *(pytest.param(*one, marks=pytest.mark.soak) for one in ((10, 128), (100, 5), (200, 5))),
    ],
)  # fmt: skip
def test_every_kind_of_term_on_six_forwards(device, classes, size, dtype):
    seeds = (2,) if size > 100 else (2, 3, 4)
    batches = [random_batch(seed, size, classes, forwards=6).to(dtype).to(device) for seed in seeds]
    assert_at_most_twice(worst([errors_of(batch, SIX_FORWARDS) for batch in batches]))


def test_forwards_of_different_dtypes(device):
    batch = random_batch(0, 7, 10).to(device).to(torch.float32)
    mixed = [one.to(dtype) for one, dtype in zip(batch.logits, DTYPES, strict=True)]
    assert_as_exact_as_pytorch(batch._replace(logits=mixed), EVERYTHING)


index, weight, sample_weight = (
    st.integers(0, 2),
    st.just(0.0) | st.floats(1e-3, 10),
    st.none() | st.integers(0, 1),
)
reduction = st.sampled_from(["mean", "batchmean"])
terms = st.one_of(
    st.builds(CrossEntropy, index, weight, sample_weight),
    st.builds(Divergence, index, index, weight, st.floats(0.5, 10), reduction, st.booleans(), sample_weight),
    st.builds(LogitDistance, index, index, weight, reduction, st.booleans(), sample_weight),
)


@given(
    table=st.lists(terms, min_size=1, max_size=5),
    seed=st.integers(0, 2**32),
    size=st.integers(1, 40),
    classes=st.integers(2, 20),
    spread=st.floats(0, 20),
)
def test_any_table(device, table, seed, size, classes, spread):
    batch = random_batch(seed, size, classes, spread).to(device).to(torch.float32)
    ours, true = evaluate(distill_loss, batch, table), evaluate(oracle, batch.to(torch.float64), table)
    assert torch.equal(ours.correct, true.correct)
    # Gradients of opposite terms may cancel: what they are a sum of is as large as the spread allows.
    size_of_terms = (1 + spread) * sum(term.weight * getattr(term, "temperature", 1) for term in table)
    for one, other in zip(ours.gradients, true.gradients, strict=True):
        torch.testing.assert_close(one.double(), other, rtol=0, atol=1e-6 * size_of_terms)
    torch.testing.assert_close(ours.values.double(), true.values, rtol=1e-5, atol=1e-5 * size_of_terms)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(
    "row", [[1e4, -1e4, 0.0], [-1e4, -1e4, 1e4], [7.0, 7.0, 7.0], [120.0, 0.0, -5.0]], ids=str
)
def test_extreme_logits(device, row, dtype):
    one = torch.tensor([row], dtype=dtype, device=device)
    weights = [torch.ones(1, device=device)] * 2
    batch = Batch([one, one.flip(1), one], torch.tensor([1], device=device), weights)
    ours = evaluate(distill_loss, batch, EVERYTHING)
    assert ours.values.isfinite().all()
    assert all(gradient.isfinite().all() for gradient in ours.gradients)
    assert_as_exact_as_pytorch(batch, EVERYTHING)


def test_equal_logits_neither_diverge_nor_pull(device):
    one = torch.randn(4, 100, device=device)
    terms = [replace(term, prediction=0, target=1) for term in EVERYTHING[2:]]
    batch = Batch([one, one.clone()], torch.zeros(4, dtype=torch.int64, device=device), [one[:, 0]] * 2)
    values, gradients, _ = evaluate(distill_loss, batch, terms)
    assert not values.any()
    assert not torch.stack(gradients).any()


def test_forward_without_a_term_has_no_gradient(device):
    batch = random_batch(0, 2, 10).to(device).to(torch.float32)
    gradients = evaluate(distill_loss, batch, [CrossEntropy(1, 1.0)]).gradients
    assert [bool(one.any()) for one in gradients] == [False, True, False]


@pytest.mark.filterwarnings(
    "ignore:.*encountered:RuntimeWarning"
)  # NumPy's, which the interpreter computes with
def test_correct_is_the_first_of_the_largest_logits_or_of_nan(device):
    nan, infinity = float("nan"), float("inf")
    one = torch.tensor(
        [
            [1, 3, 3, 0, 0],
            [2, nan, 9, nan, 0],
            [-infinity] * 5,
            [0, 1, infinity, infinity, nan],
            [-0.0, 0, 0, 0, 0],
        ],
        device=device,
    )
    for column in range(5):
        labels = torch.full((5,), column, device=device)
        batch = Batch([one], labels, [])
        terms = [CrossEntropy(0, 1.0)]
        assert torch.equal(
            evaluate(distill_loss, batch, terms).correct, (one.argmax(1) == labels).sum()[None]
        )


def test_scale_enlarges_gradients_before_they_are_rounded_and_leaves_values_alone(device):
    batch = random_batch(0, 4, 10, 1.0).to(device).to(torch.float16)
    # Gradients that float16 would round to zero.
    terms = [CrossEntropy(0, 1e-7)]
    for scale in (1024, torch.tensor(1024.0, device=device), torch.tensor([1024.0], device=device)):
        assert_as_exact_as_pytorch(batch, terms, scale)
        assert evaluate(distill_loss, batch, terms, scale).gradients[0].all()


@pytest.mark.parametrize("label", [-1, -100, 10])
def test_label_that_is_no_class_shows_as_nan_in_its_row(device, label):
    batch = random_batch(0, 20, 10).to(device).to(torch.float32)
    batch.labels[3] = label
    values, gradients, _ = evaluate(
        distill_loss, batch, [CrossEntropy(0, 1.0), *PEERAID["cifar10"].terms[3:]]
    )
    assert values.isnan().tolist() == [True, False, False]
    rows = gradients[0].isnan()
    assert rows[3].all()
    assert rows.sum() == 10
    assert not gradients[1].isnan().any()


def test_what_is_not_contiguous_is_copied(device):
    batch = random_batch(0, 6, 10).to(device).to(torch.float32)
    labels = torch.stack([batch.labels, batch.labels], 1)[:, 0]
    strided = Batch([one.t().contiguous().t() for one in batch.logits], labels, batch.sample_weights)
    ours, expected = evaluate(distill_loss, strided, EVERYTHING), evaluate(distill_loss, batch, EVERYTHING)
    torch.testing.assert_close(ours, expected, rtol=0, atol=0)


@pytest.mark.parametrize("largest", [12, pytest.param(48, marks=pytest.mark.soak)])
def test_results_repeat_to_the_last_bit_whatever_ran_before(device, largest):
    batch, terms = random_batch(0, largest, 10).to(device).to(torch.float32), EVERYTHING[:4]
    first = evaluate(distill_loss, batch, terms)
    for size in (1, largest // 2 + 1, largest):
        evaluate(distill_loss, random_batch(1, size, 10).to(device).to(torch.float32), terms)
        torch.testing.assert_close(evaluate(distill_loss, batch, terms), first, rtol=0, atol=0)


def test_captured_graph_computes_what_eager_calls_do_between_them(device):
    if device.type != "cuda":
        pytest.skip("needs CUDA graphs")
    batch, other = (random_batch(seed, 128, 10).to(device).to(torch.float32) for seed in (0, 1))
    expected = [evaluate(distill_loss, one, EVERYTHING) for one in (batch, other)]
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured = evaluate(distill_loss, batch, EVERYTHING)
    for _ in range(3):
        graph.replay()
        torch.testing.assert_close(evaluate(distill_loss, other, EVERYTHING), expected[1], rtol=0, atol=0)
        torch.testing.assert_close(captured, expected[0], rtol=0, atol=0)


def valid(**changed):
    arguments = {
        "logits": [torch.zeros(2, 10)],
        "labels": torch.zeros(2, dtype=torch.int64),
        "terms": [CrossEntropy(0, 1.0)],
        "scale": 1.0,
        "sample_weights": [],
    }
    return {**arguments, **changed}


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (valid(logits=[]), "forwards must be 1 to 8, got 0"),
        (valid(logits=[torch.zeros(2, 10)] * (MAX_FORWARDS + 1)), "forwards must be 1 to 8, got 9"),
        (valid(terms=[]), "at least one, got none"),
        (
            valid(logits=[torch.zeros(2, 10).double()]),
            "logits must be float32, bfloat16 or float16, got torch.float64",
        ),
        (valid(logits=[torch.zeros(2, 10), torch.zeros(2, 9)]), "one shape"),
        (valid(logits=[torch.zeros(2, MAX_CLASSES + 1)]), "C from 2 to 1024"),
        (valid(logits=[torch.zeros(2, 1)]), "C from 2 to 1024"),
        (valid(logits=[torch.zeros(MAX_BATCH + 1, 10)]), "B from 1 to 4096"),
        (valid(logits=[torch.zeros(0, 10)]), "B from 1 to 4096"),
        (valid(logits=[torch.zeros(10)]), r"logits must be \(B, C\)"),
        (valid(labels=torch.zeros(2, dtype=torch.int32)), "labels must be int64"),
        (valid(labels=torch.zeros(3, dtype=torch.int64)), "labels must be int64"),
        (valid(sample_weights=[torch.zeros(3)]), "sample weights must be floating"),
        (valid(sample_weights=[torch.zeros(2).long()]), "sample weights must be floating"),
        (valid(scale=torch.ones(2)), "one element"),
        (valid(scale=torch.ones((), device="meta")), "on one device"),
        (valid(terms=[CrossEntropy(1, 1.0)]), "forwards must be 0 to 0"),
        (valid(terms=[Divergence(0, -1, 1.0, 1.0, "mean", True)]), "forwards must be 0 to 0"),
        (valid(terms=[CrossEntropy(0, 1.0, 0)]), "sample weight must be one of the 0 given"),
    ],
)
def test_what_is_outside_the_limits_is_refused(arguments, says):
    with pytest.raises(ValueError, match=f"fused loss: .*{says}"):
        distill_loss(**arguments)
