"""Both readers of uncompressed images, NumPy's and FFCV's, give the same batches bit for bit."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fastpeer.data.beton import BetonLoader
from fastpeer.data.beton_file import FIELD, HEADER, map_samples
from fastpeer.data.dataset import PreparedDataset, open_dataset
from fastpeer.data.host import HostSource
from fastpeer.data.raw import RawLoader
from fastpeer.data.split import open_split
from fastpeer.data.threaded import ThreadedLoader
from fastpeer.errors import UserError
from fastpeer.files import file_sha256

COUNT = 13
WRITE = """
import sys
import numpy as np
from ffcv.fields import BytesField, FloatField, IntField, RGBImageField
from ffcv.writer import DatasetWriter
path, count, height, width, mode, low = sys.argv[1], *map(int, sys.argv[2:5]), *sys.argv[5:]
random = np.random.default_rng(0)
samples = [
    (random.random(), int(random.integers(int(low), 5)), np.arange(n + 1, dtype=np.uint8),
     random.integers(0, 256, (height, width, 3), dtype=np.uint8))
    for n in range(count)
]
fields = {"weight": FloatField(), "label": IntField(), "name": BytesField(), "image": RGBImageField(mode)}
DatasetWriter(path, fields, page_size=1 << 21, num_workers=2).from_indexed_dataset(samples, chunksize=3)
"""
"""Writes what others may: several fields, of which images and labels are not the first, by two workers."""


@pytest.fixture(scope="module")
def foreign(tmp_path_factory):
    """Return a function that writes a file with FFCV alone."""
    folder = tmp_path_factory.mktemp("foreign")

    def write(height=700, width=500, mode="raw", lowest_label=-5):
        path = folder / f"{height}x{width}-{mode}.beton"
        if not path.exists():
            words = (str(path), str(COUNT), str(height), str(width), mode, str(lowest_label))
            # Nothing that writes is compiled.
            options = {"env": {**os.environ, "NUMBA_DISABLE_JIT": "1"}, "check": True, "capture_output": True}
            subprocess.run([sys.executable, "-c", WRITE, *words], **options)
        return path

    return write


@pytest.fixture(scope="module", params=["small", "several pages"])
def readers(request, small_dataset, foreign):
    """NumPy's and FFCV's readers of a file: of tiny images, or of two a page, which they do not fill."""
    path = small_dataset / "train.beton" if request.param == "small" else foreign()
    return RawLoader(path, 4), BetonLoader(path, 4)


def assert_same(ours, theirs):
    for loaded, expected in zip(ours, theirs, strict=True):
        for tensor, other in zip(loaded, expected, strict=True):
            assert torch.equal(tensor, other)
            assert (tensor.dtype, tensor.stride()) == (other.dtype, other.stride())


@settings(deadline=None)  # FFCV compiles at its first batch
@given(data=st.data(), batch_size=st.integers(1, 2 * COUNT))
def test_any_order_in_batches_of_any_size_is_ffcvs_bit_for_bit(readers, data, batch_size):
    order = np.array(data.draw(st.lists(st.integers(0, COUNT - 1), max_size=2 * COUNT)), dtype=np.int64)
    ours, theirs = (reader.with_batch_size(batch_size) for reader in readers)
    assert ours.batch_size == theirs.batch_size == batch_size
    assert_same(ours.batches(order), theirs.batches(order))


def test_labels_are_ffcvs(readers):
    ours, theirs = (reader.labels for reader in readers)
    assert np.array_equal(ours, theirs)
    assert ours.dtype == theirs.dtype == np.int64


def test_batches_outlive_later_ones_and_threads_stay(small_dataset):
    torch.set_num_threads(2)
    try:
        loader = RawLoader(small_dataset / "train.beton", 3)
        batches = list(loader.batches(np.arange(9)))
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(1)
    (whole, _), *_ = loader.with_batch_size(9).batches(np.arange(9))
    assert torch.equal(torch.cat([images for images, _ in batches]), whole)


def damaged(data, place, value):
    return data[:place] + value + data[place + len(value) :]


ROWS = HEADER.itemsize + 2 * FIELD.itemsize


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda data: b"", "cannot mmap an empty file"),
        (lambda data: data[:10], "buffer"),
        (lambda data: data[:1500], "buffer"),
        (lambda data: data[: 1 << 21], "table of allocations must lie between"),
        (lambda data: damaged(data, 0, b"\3"), "must have version 2, got 3"),
        (lambda data: damaged(data, 8, bytes(8)), "no samples"),
        (lambda data: damaged(data, 8, b"\xff" * 8), "too large|buffer"),
        (lambda data: damaged(data, HEADER.itemsize, b"\xff"), "must have an image and an integer label"),
        (
            lambda data: damaged(data, HEADER.itemsize + 1, b"other"),
            "must have an image and an integer label",
        ),
        (lambda data: damaged(data, ROWS + 1, b"\7"), "image 0 does not take the bytes of its pixels"),
        (lambda data: damaged(data, ROWS, b"\0"), "image 0 is no baseline JPEG"),
    ],
)
def test_other_files_are_refused_in_one_line(small_dataset, tmp_path, change, words):
    path = tmp_path / "other.beton"
    path.write_bytes(change((small_dataset / "train.beton").read_bytes()))
    with pytest.raises(UserError, match=words) as refusal:
        RawLoader(path, 8)
    assert str(refusal.value).startswith(f"{path}: ")
    assert "\n" not in str(refusal.value)


def test_field_of_an_unknown_kind_is_refused(foreign, tmp_path):
    (tmp_path / "custom.beton").write_bytes(damaged(foreign().read_bytes(), HEADER.itemsize, b"\xff"))
    with pytest.raises(UserError, match="a field of unknown kind 255"):
        map_samples(tmp_path / "custom.beton")


@pytest.mark.parametrize(
    ("reader", "kind"), [("auto", RawLoader), ("numpy", RawLoader), ("ffcv", BetonLoader)]
)
def test_auto_reads_uncompressed_images_with_numpy(small_dataset, reader, kind):
    loader = open_split(open_dataset(small_dataset), "test", 8, reader=reader)
    assert type(loader) is kind
    assert loader.batch_size == 8


def test_a_file_that_is_cut_short_meanwhile_is_refused(small_dataset, tmp_path):
    path = tmp_path / "train.beton"
    path.write_bytes((small_dataset / "train.beton").read_bytes())
    source = HostSource(RawLoader(path, 8), torch.device("cpu"))
    batches = source.batches(np.arange(len(source.labels)), None, torch.float32)
    next(batches)
    os.truncate(path, 1000)
    with pytest.raises(UserError, match=r"train\.beton: cut short while it was read, .* got 1000"):
        list(batches)
    # What was replaced or removed is still there for whoever has it open.
    path.unlink()


def test_auto_reads_jpegs_of_one_size_in_threads(foreign):
    path = foreign(24, 16, "jpg", lowest_label=0)
    facts = {"file": path.name, "count": COUNT, "bytes": path.stat().st_size, "sha256": file_sha256(path)}
    dataset = PreparedDataset(path.parent, "foreign", tuple("abcde"), (24, 16), {"train": facts})
    assert type(open_split(dataset, "train", 8)) is ThreadedLoader
    assert type(open_split(dataset, "train", 8, reader="ffcv")) is BetonLoader
    with pytest.raises(UserError, match=r"compressed: read it with --data\.reader auto"):
        open_split(dataset, "train", 8, reader="numpy")


def test_a_file_that_is_cut_short_is_one_line_not_a_signal(small_dataset, tmp_path):
    path = Path(shutil.copy(small_dataset / "train.beton", tmp_path))
    loader = RawLoader(path, 1)
    last = int(np.argmax(map_samples(path).images["pointer"]))
    batches = loader.with_batch_size(2).batches(np.array([0, 1, last, last]))
    next(batches)
    os.truncate(path, 4096)
    with pytest.raises(UserError, match="cut short while it was read"):
        next(batches)


def test_a_file_that_is_replaced_is_read_as_it_was(small_dataset, tmp_path):
    path = Path(shutil.copy(small_dataset / "train.beton", tmp_path))
    loader = RawLoader(path, 5)
    before = [images.clone() for images, _ in loader.batches(np.arange(10))]
    path.unlink()
    path.write_bytes(b"")
    assert all(map(torch.equal, before, [images for images, _ in loader.batches(np.arange(10))]))
