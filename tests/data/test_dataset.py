"""Prepared data sets: opened when complete, refused when missing, foreign or damaged."""

import json
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
    (tmp_path / "train").mkdir()
    refused(lambda: open_dataset(tmp_path), f"--dataset folder --source {tmp_path} --out data/NAME")


@pytest.mark.parametrize(
    "content", ["", "no JSON", "[]", "3", "{}", '{"name": 1, "classes": 2}', '{"splits": []}', "\x00\xff"]
)
def test_foreign_description_is_refused(copied, content):
    (copied / "dataset.json").write_bytes(content.encode("latin-1"))
    refused(lambda: open_dataset(copied), "dataset.json", "fastpeer prep")


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"name": "a\x1b[2J"}, ["name must be a text without control"]),
        ({"classes": "ab"}, ["classes must be a list"]),
        ({"classes": []}, ["classes must be a list"]),
        ({"classes": [1, 2]}, ["classes must be a list"]),
        ({"size": [8, 0]}, ["size must be a whole number above 0, got 0"]),
        ({"size": [8, 70000]}, ["size must be", "70000"]),
        ({"size": [8, 8.0]}, ["size must be", "8.0"]),
        ({"encoding": ["raw"]}, ["encoding must be raw or jpeg"]),
        ({"file": "../train.beton"}, ["file must be the name of a file in the folder"]),
        ({"file": "/etc/passwd"}, ["file must be the name of a file in the folder"]),
        ({"file": "a" * 5000}, ["file must be the name", "aaa…"]),
        ({"file": "a\0b"}, ["file must be a text without control"]),
        ({"count": 10**30}, ["count must be a whole number"]),
        ({"count": True}, ["count must be a whole number"]),
        ({"bytes": -1}, ["bytes must be a whole number"]),
        ({"sha256": "x"}, ["sha256 must be 64 hexadecimal digits"]),
    ],
)
def test_description_with_what_cannot_be_is_refused(copied, change, words):
    content = json.loads((copied / "dataset.json").read_text())
    for name, value in change.items():
        (content["splits"]["test"] if name in content["splits"]["test"] else content)[name] = value
    (copied / "dataset.json").write_text(json.dumps(content))
    refused(lambda: open_dataset(copied), "dataset.json", *words)


@pytest.mark.parametrize("text", ["[" * 10**6, '{"name": ' + "1" * 5000 + "}", '{"name": 1e999999999}'])
def test_description_without_end_is_refused(copied, text):
    (copied / "dataset.json").write_text(text)
    refused(lambda: open_dataset(copied), "dataset.json")


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
