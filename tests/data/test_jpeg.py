"""Images of many sizes, kept as JPEG: each pixel is a function of seed, epoch and sample."""

import threading
from contextlib import closing

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fastpeer.config import DataConfig
from fastpeer.data import box_decoder
from fastpeer.data.dataset import open_dataset
from fastpeer.data.host import HostSource
from fastpeer.data.resident import open_source
from fastpeer.data.split import open_split
from fastpeer.data.stream import EvaluationStream, TrainingStream
from fastpeer.data_prep import PrepOptions, prepare
from fastpeer.errors import UserError
from tests.data_prep.prep_files import encode, pixels, write_files

CPU = torch.device("cpu")
IMAGES, SIDE = 22, 24


@pytest.fixture(scope="module")
def dataset(tmp_path_factory):
    root = tmp_path_factory.mktemp("jpeg")
    random = np.random.default_rng(0)
    files = {}
    for number in range(IMAGES):
        height, width = random.integers(12, 90, 2)
        smooth = np.kron(pixels(number, 3, 3), np.ones((30, 30, 1), np.uint8))[:height, :width]
        files[f"train/{'ab'[number % 2]}/{number:02}.jpg"] = encode(smooth, "JPEG")
    files |= {f"test/{name}/0.jpg": encode(pixels(50, 30, 40), "JPEG") for name in "ab"}
    prepare(
        PrepOptions(
            dataset="folder", source=write_files(root / "s", files), out=root / "d", workers=1, jpeg=True
        )
    )
    return open_dataset(root / "d")


@pytest.fixture(scope="module")
def loader(dataset):
    return open_split(dataset.seen_at(SIDE), "train", 8)


@pytest.fixture(scope="module")
def ffcvs(dataset):
    """FFCV's own reader of the same images."""
    return open_split(dataset.seen_at(SIDE), "train", 8, reader="ffcv")


@settings(deadline=None)  # FFCV compiles at its first batch
@given(
    order=st.lists(st.integers(0, IMAGES - 1), max_size=2 * IMAGES),
    batch_size=st.integers(1, 2 * IMAGES),
    key=st.none() | st.integers(0, 2**63),
)
def test_any_order_in_batches_of_any_size_is_ffcvs_bit_for_bit(loader, ffcvs, order, batch_size, key):
    ours, theirs = (reader.with_batch_size(batch_size) for reader in (loader, ffcvs))
    batches = zip(
        ours.batches(np.array(order, np.int64), key),
        theirs.batches(np.array(order, np.int64), key),
        strict=True,
    )
    for loaded, expected in batches:
        for tensor, other in zip(loaded, expected, strict=True):
            assert torch.equal(tensor, other)
            assert (tensor.dtype, tensor.stride()) == (other.dtype, other.stride())


def stream(loader, seed=0, augment=True, shuffle=True):
    return TrainingStream(
        HostSource(loader, CPU), np.arange(IMAGES), torch.float32, seed, augment, shuffle, False
    )


def assert_same(ours, theirs):
    assert len(ours) == len(theirs)
    for batch, expected in zip(ours, theirs, strict=True):
        assert torch.equal(batch.images, expected.images)
        assert torch.equal(batch.labels, expected.labels)


def all_images(batches):
    return torch.cat([batch.images for batch in batches])


def test_same_seed_gives_the_same_images_and_another_seed_or_epoch_others(loader):
    first = list(stream(loader, seed=1).epoch(3))
    assert first[0].images.shape == (8, 3, SIDE, SIDE)
    assert first[0].images.is_contiguous(memory_format=torch.channels_last)
    # FFCV's own random crop would depend on numpy's generator.
    np.random.seed(5)
    assert_same(first, list(stream(loader, seed=1).epoch(3)))
    for others in (stream(loader, seed=2).epoch(3), stream(loader, seed=1).epoch(4)):
        assert not torch.equal(all_images(first), all_images(others))


@pytest.mark.parametrize("first", range(4))
def test_epoch_resumed_in_the_middle_equals_its_tail(loader, first):
    assert_same(list(stream(loader).epoch(2, first=first)), list(stream(loader).epoch(2))[first:])


def test_number_of_threads_and_size_of_the_batch_do_not_matter(dataset, loader):
    ours = all_images(stream(loader).epoch(1))
    assert torch.equal(all_images(stream(loader.with_batch_size(5)).epoch(1)), ours)
    torch.set_num_threads(2)
    try:
        assert torch.equal(all_images(stream(open_split(dataset.seen_at(SIDE), "train", 8)).epoch(1)), ours)
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(1)


def test_an_epoch_is_not_disturbed_by_one_that_begins_later(loader):
    alone = list(stream(loader).epoch(0))
    with closing(stream(loader).epoch(0)) as batches:
        begun = [next(batches)]
        list(stream(loader).epoch(7))
        assert_same([*begun, *batches], alone)


def ffcvs_centre(path, number):
    """Return an image as FFCV's CenterCropRGBImageDecoder decodes it, by the same functions."""
    from ffcv.fields.rgb_image import get_center_crop
    from ffcv.libffcv import imdecode, resize_crop
    from ffcv.reader import Reader

    reader = Reader(str(path))
    sizes = dict(zip(reader.alloc_table["ptr"], reader.alloc_table["size"], strict=True))
    field = reader.metadata["f0"][number]
    start, height, width = (int(field[name]) for name in ("data_ptr", "height", "width"))
    data = np.fromfile(path, np.uint8)[start : start + int(sizes[start])]
    image, crop = np.empty((height, width, 3), np.uint8), np.empty((SIDE, SIDE, 3), np.uint8)
    imdecode(data, image, height, width, height, width, 0, 0, 1, 1, False, False)
    top, left, rows, columns = get_center_crop(height, width, None, 224 / 256)
    resize_crop(image, top, top + rows, left, left + columns, crop)
    return torch.from_numpy(crop).permute(2, 0, 1) / 255


def test_without_augmentation_it_is_ffcvs_centre_crop(loader):
    plain = all_images(stream(loader, augment=False, shuffle=False).epoch(0))
    source = HostSource(loader, CPU)
    assert torch.equal(plain, all_images(EvaluationStream(source, np.arange(IMAGES), torch.float32)))
    assert torch.equal(plain, torch.stack([ffcvs_centre(loader.path, number) for number in range(IMAGES)]))


def test_scale_is_that_of_the_settings(dataset, loader):
    narrow = open_split(dataset.seen_at(SIDE), "train", 8, (0.08, 0.1))
    ours, theirs = (all_images(stream(source).epoch(0)) for source in (narrow, loader))
    assert not torch.equal(ours, theirs)


def test_no_thread_is_left_of_an_epoch_left_early(loader):
    # The loader's own threads stay for the next epoch.
    list(stream(loader).epoch(0))
    before = threading.active_count()
    for _ in range(3):
        with closing(stream(loader).epoch(0)) as batches:
            next(batches)
    assert threading.active_count() == before


def test_labels_and_metadata_are_unchanged(loader, ffcvs):
    assert loader.labels.tolist() == ffcvs.labels.tolist() == [0] * 11 + [1] * 11
    metadata = ffcvs._loader.reader.metadata
    once = box_decoder.with_boxes(metadata, "f0")
    again = box_decoder.with_boxes(once, "f0")
    assert again.dtype == once.dtype
    assert np.array_equal(again["f0"]["data_ptr"], metadata["f0"]["data_ptr"])


@pytest.mark.parametrize(("residency", "lines"), [("auto", 0), ("host", 0), ("device", 1)])
def test_images_stay_on_the_host_with_a_warning_for_residency_device(loader, residency, lines, logged):
    source = open_source(loader, (SIDE, SIDE), CPU, residency)
    assert isinstance(source, HostSource)
    assert len(logged) == lines


def test_size_is_needed_for_jpegs_and_must_fit_others(dataset, small_dataset):
    with pytest.raises(UserError, match=r"JPEGs of many sizes: .*--size 224$"):
        dataset.seen_at(0, "--size")
    assert dataset.seen_at(32).size == (32, 32)
    stored = open_dataset(small_dataset)
    assert stored.seen_at(0) == stored.seen_at(8) == stored
    expected = r"^--data\.size must be the stored size 8x8 for .*, got 16x16: leave it out, or .*--size 16$"
    with pytest.raises(UserError, match=expected):
        stored.seen_at(16)


@pytest.mark.parametrize(
    ("setting", "value", "words"),
    [
        ("size", -1, "size must be 0"),
        ("size", 5000, "size must be 4096 or less"),
        ("crop_scale", (0.5, 0.2), "crop_scale"),
        ("crop_scale", (0.0, 1.0), "crop_scale"),
        ("crop_scale", (0.1, float("nan")), "crop_scale"),
        ("crop_scale", (0.5,), "crop_scale"),
    ],
)
def test_wrong_settings_are_refused(setting, value, words):
    with pytest.raises(ValueError, match=words):
        DataConfig(**{setting: value})
