"""The images that are trained on or held out, and their order."""

import threading
from contextlib import closing

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from fastpeer.data.beton import BetonLoader
from fastpeer.data.host import HostSource
from fastpeer.data.stream import EvaluationStream, TrainingStream, hold_out, spread
from fastpeer.errors import UserError
from fastpeer.kernels.crop_and_flip import to_unit_range

CPU = torch.device("cpu")
IMAGES = 45


@pytest.fixture(scope="module")
def loader(small_dataset):
    return BetonLoader(small_dataset / "train.beton", 8)


@pytest.fixture
def stream(loader):
    def build(indices=None, seed=0, augment=True, shuffle=True, drop_last=False):
        indices = np.arange(IMAGES) if indices is None else indices
        return TrainingStream(
            HostSource(loader, CPU), indices, torch.float32, seed, augment, shuffle, drop_last
        )

    return build


def assert_same(ours, theirs):
    assert len(ours) == len(theirs)
    for batch, expected in zip(ours, theirs, strict=True):
        assert torch.equal(batch.images, expected.images)
        assert torch.equal(batch.labels, expected.labels)


def all_images(batches):
    return torch.cat([batch.images for batch in batches])


@given(
    labels=st.lists(st.integers(0, 4), min_size=1, max_size=60).map(lambda labels: np.array(labels * 2)),
    fraction=st.floats(0.001, 0.999),
)
def test_hold_out_takes_the_last_images_of_each_class_at_least_one_never_all(labels, fraction):
    used, held = hold_out(labels, fraction)
    assert sorted([*used, *held]) == list(range(len(labels)))
    assert list(used) == sorted(used)
    assert list(held) == sorted(held)
    for label in np.unique(labels):
        ours, theirs = used[labels[used] == label], held[labels[held] == label]
        assert len(ours) >= 1
        assert len(theirs) >= 1
        assert ours.max() < theirs.min()
        wanted = fraction * (len(ours) + len(theirs))
        assert abs(len(theirs) - wanted) <= 0.5 or len(theirs) == 1 or len(ours) == 1


def test_class_with_one_image_cannot_be_held_out():
    with pytest.raises(UserError, match="class 1 has one training image"):
        hold_out(np.array([0, 0, 1]), 0.1)


@given(size=st.integers(1, 500), count=st.integers(0, 600))
def test_spread_returns_different_indices_at_even_distances(size, count):
    chosen = spread(np.arange(size), count)
    assert len(chosen) == (min(count, size) or size)
    distances = np.diff([*chosen, size])
    assert distances.min() >= 1
    assert distances.max() - distances.min() <= 1


def test_same_seed_gives_the_same_images_and_another_seed_or_epoch_or_purpose_others(stream):
    first = list(stream(seed=1).epoch(3))
    assert_same(first, list(stream(seed=1).epoch(3)))
    for others in (
        stream(seed=2).epoch(3),
        stream(seed=1).epoch(4),
        stream(seed=1).epoch(3, purpose="averaging"),
    ):
        assert not torch.equal(all_images(first), all_images(others))


@pytest.mark.parametrize("first", range(7))
@pytest.mark.parametrize("drop_last", [True, False])
def test_epoch_resumed_in_the_middle_equals_its_tail(stream, first, drop_last):
    training = stream(drop_last=drop_last)
    assert_same(list(training.epoch(2, first=first)), list(training.epoch(2))[first:])


@pytest.mark.parametrize(("drop_last", "sizes"), [(True, [8] * 5), (False, [8] * 5 + [5])])
def test_drop_last_leaves_out_the_partial_batch(stream, drop_last, sizes):
    training = stream(drop_last=drop_last)
    assert [len(batch.labels) for batch in training.epoch(0)] == sizes
    assert training.steps_per_epoch == len(sizes)


def test_without_shuffling_the_order_is_the_data_sets(stream, loader):
    chosen = np.array([3, 4, 10, 44])
    (batch,) = stream(chosen, shuffle=False, augment=False).epoch(5)
    assert batch.labels.tolist() == loader.labels[chosen].tolist()
    (images, _), *_ = loader.batches(chosen)
    assert torch.equal(batch.images, to_unit_range(images, torch.float32))
    (evaluated,) = EvaluationStream(HostSource(loader, CPU), chosen, torch.float32)
    assert_same([batch], [evaluated])


def test_shuffled_epoch_holds_every_image_once(stream, loader):
    plain = all_images(stream(shuffle=False, augment=False).epoch(0))
    shuffled = all_images(stream(augment=False).epoch(0))
    assert not torch.equal(plain, shuffled)
    rows = [images.flatten(1).numpy() for images in (plain, shuffled)]
    assert np.array_equal(*(np.unique(images, axis=0) for images in rows))


@pytest.mark.parametrize("augment", [True, False])
def test_batches_outlive_later_batches(stream, augment):
    copies, batches = [], []
    for batch in stream(augment=augment).epoch(0):
        batches.append(batch)
        copies.append(type(batch)(batch.images.clone(), batch.labels.clone()))
    assert_same(batches, copies)


def test_no_thread_is_left_of_an_epoch_left_early(stream):
    before = threading.active_count()
    for _ in range(3):
        with closing(stream().epoch(0)) as batches:
            next(batches)
    assert threading.active_count() == before


def test_batches_of_one_image(small_dataset, stream):
    source = HostSource(BetonLoader(small_dataset / "train.beton", 1), CPU)
    single = TrainingStream(source, np.arange(3), torch.float32, 0, True, False, False)
    (together,) = stream(np.arange(3), shuffle=False).epoch(0)
    assert torch.equal(all_images(single.epoch(0)), together.images)


def test_torch_keeps_its_number_of_threads(small_dataset):
    torch.set_num_threads(2)
    try:
        list(BetonLoader(small_dataset / "test.beton", 8).batches(np.arange(5)))
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(1)


def test_foreign_file_is_refused_by_name(tmp_path):
    (tmp_path / "foreign.beton").write_bytes(bytes(range(256)))
    with pytest.raises(UserError, match=r"foreign\.beton: not a \.beton file") as refusal:
        BetonLoader(tmp_path / "foreign.beton", 8)
    assert "\n" not in str(refusal.value)
