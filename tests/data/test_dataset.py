"""Prepared data sets: opened when complete, refused when missing, foreign or damaged."""

import shutil

import pytest

from fastpeer.data.dataset import open_dataset
from fastpeer.errors import UserError


@pytest.fixture
def copied(small_dataset, tmp_path):
    return shutil.copytree(small_dataset, tmp_path / "copy")


def refused(action, *mentions):
    with pytest.raises(UserError) as refusal:
        action()
    text = str(refusal.value)
    assert "\n" not in text
    assert all(mention in text for mention in mentions), text


def test_complete_data_set_is_opened(small_dataset):
    dataset = open_dataset(small_dataset)
    assert (dataset.name, dataset.size, len(dataset.classes)) == ("folder", (8, 8), 5)
    assert dataset.beton("train") == small_dataset / "train.beton"
    assert dataset.beton("test") == small_dataset / "test.beton"


def test_missing_data_set_error_names_the_command_to_make_it(tmp_path):
    refused(lambda: open_dataset(tmp_path), str(tmp_path), "fastpeer prep")


@pytest.mark.parametrize(
    "content", ["", "no JSON", "[]", "3", "{}", '{"name": 1, "classes": 2}', '{"splits": []}', "\x00\xff"]
)
def test_foreign_description_is_refused(copied, content):
    (copied / "dataset.json").write_bytes(content.encode("latin-1"))
    refused(lambda: open_dataset(copied), "dataset.json", "fastpeer prep")


def flip_one_byte(data):
    return data[:5000] + bytes([data[5000] ^ 1]) + data[5001:]


@pytest.mark.parametrize("damage", [flip_one_byte, lambda data: data[:-1], lambda data: b""])
def test_damaged_file_is_refused(copied, damage):
    path = copied / "train.beton"
    path.write_bytes(damage(path.read_bytes()))
    refused(lambda: open_dataset(copied).beton("train"), "train.beton", "damaged")


def test_missing_file_is_named(copied):
    (copied / "test.beton").unlink()
    refused(lambda: open_dataset(copied).beton("test"), "test.beton", "missing")
