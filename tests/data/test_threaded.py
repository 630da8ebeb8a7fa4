"""JPEGs decoded in threads: of one size, damaged ones, and C functions called for each row of a table."""

import ctypes
import itertools

import numpy as np
import pytest
import torch
from beton_files import beton, jpeg_file
from hypothesis import given
from hypothesis import strategies as st

from fastpeer.data.beton_file import JPEG, RAW
from fastpeer.data.row_calls import RowCaller
from fastpeer.data.threaded import ThreadedCropLoader, ThreadedLoader
from fastpeer.errors import UserError
from tests.data_prep.prep_files import encode, pixels

SIDE, COUNT = 16, 9


def written(path, file):
    path.write_bytes(file.tobytes())
    return path


def decoded(data, height, width):
    """Decode by FFCV's function, called by FFCV's own module."""
    from ffcv.libffcv import imdecode

    image = np.empty((height, width, 3), np.uint8)
    imdecode(np.frombuffer(data, np.uint8), image, height, width, height, width)
    return image


@pytest.fixture(scope="module")
def mixed(tmp_path_factory):
    """A loader of JPEGs and of pixels, of one size, and what each image is."""
    modes = [RAW if number % 3 == 1 else JPEG for number in range(COUNT)]
    images = [pixels(seed, SIDE, 20) for seed in range(COUNT)]
    stored = [
        image.tobytes() if mode == RAW else encode(image, "JPEG")
        for image, mode in zip(images, modes, strict=True)
    ]
    file = beton(stored, [(SIDE, 20)] * COUNT, modes)
    expected = [
        image if mode == RAW else decoded(data, SIDE, 20)
        for image, data, mode in zip(images, stored, modes, strict=True)
    ]
    path = written(tmp_path_factory.mktemp("mixed") / "a.beton", file)
    return ThreadedLoader(path, 4), np.stack(expected)


@given(order=st.lists(st.integers(0, COUNT - 1), max_size=40), batch_size=st.integers(1, 12))
def test_images_of_one_size_are_those_that_are_stored(mixed, order, batch_size):
    loader, expected = mixed
    batches = [
        (images.permute(0, 2, 3, 1).numpy().copy(), labels.numpy())
        for images, labels in loader.with_batch_size(batch_size).batches(np.array(order, np.int64))
    ]
    assert [len(labels) for _, labels in batches[:-1]] == [batch_size] * (len(batches) - 1)
    images, labels = (np.concatenate(parts) for parts in zip(*batches, strict=True)) if batches else ([], [])
    assert np.array_equal(images, expected[order] if order else [])
    assert list(labels) == [number % 3 for number in order]


@pytest.mark.parametrize("threads", [2, 13])
def test_number_of_threads_does_not_matter(tmp_path, threads):
    path = written(tmp_path / "a.beton", jpeg_file(count=40, side=SIDE))
    (one, _), *_ = ThreadedLoader(path, 40).batches(np.arange(40))
    torch.set_num_threads(threads)
    try:
        (several, _), *_ = ThreadedLoader(path, 40).batches(np.arange(40))
    finally:
        torch.set_num_threads(1)
    assert torch.equal(one, several)


def damaged_file(side, number, change):
    """Return a file of JPEGs, one of which is changed behind its header."""
    file = jpeg_file(side=side)
    start = int(file.table["pointer"][number] - file.table["pointer"][0])
    stop = start + int(file.table["size"][number])
    change(memoryview(file.payload)[start:stop])
    return file


def without_its_end(jpeg):
    jpeg[len(jpeg) // 2 :] = bytes(len(jpeg) - len(jpeg) // 2)


@pytest.mark.parametrize("side", [0, SIDE])
def test_jpeg_that_cannot_be_decoded_is_refused_by_its_number(tmp_path, side):
    path = written(tmp_path / "a.beton", damaged_file(side, 4, without_its_end))
    loader = ThreadedLoader(path, 3) if side else ThreadedCropLoader(path, 3, 24, (0.1, 1))
    batches = loader.batches(np.arange(6))
    next(batches)
    with pytest.raises(UserError, match=r"a\.beton: image 4 is a damaged JPEG, which cannot be decoded"):
        next(batches)


def test_jpeg_that_libjpeg_only_warns_of_is_read(tmp_path):
    image = encode(pixels(0, SIDE, SIDE), "JPEG")
    # Bytes before the end's marker, as many files on the web have them.
    odd = image[:-2] + b"\1\2\3" + image[-2:]
    loader = ThreadedLoader(written(tmp_path / "a.beton", beton([odd], [(SIDE, SIDE)], JPEG)), 1)
    ((images, _),) = loader.batches(np.arange(1))
    assert np.array_equal(images[0].permute(1, 2, 0), decoded(image, SIDE, SIDE))


@given(counts=st.tuples(st.integers(1, 13), st.integers(1, 11)), rows=st.integers(0, 3))
def test_each_row_has_its_functions_called_in_turn(counts, rows):
    calls = []
    values = itertools.count(-(2**40))
    functions = [
        ctypes.CFUNCTYPE(ctypes.c_int, *[ctypes.c_int64] * count)(
            lambda *words, number=number: calls.append((number, *words)) or -number - len(calls)
        )
        for number, count in enumerate(counts)
    ]
    addresses = [ctypes.cast(function, ctypes.c_void_p).value for function in functions]
    table = np.array([[next(values) for _ in range(sum(counts))] for _ in range(rows)], np.int64)
    table = table.reshape(rows, sum(counts))
    expected = [
        (number, *part) for row in table.tolist() for number, part in enumerate(split(row, counts[0]))
    ]
    results = RowCaller(*zip(addresses, counts, strict=True))(table)
    assert calls == expected
    assert results.tolist() == [-1 - 2 * row for row in range(rows)]


def split(row, count):
    return row[:count], row[count:]
