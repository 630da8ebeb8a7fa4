"""Misspelt words lead to what was meant, by the fewest edits."""

import string

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fastpeer.cli.arguments import flags_of
from fastpeer.data_prep import PrepOptions
from fastpeer.suggestions import edit_distance, similar

WORDS = st.text("abc", max_size=6)


@pytest.mark.parametrize("word", ["--datset", "--dataest", "--datsaet", "--datasets", "--data", "--datase"])
def test_a_slip_or_a_beginning_of_a_flag_suggests_it_alone(word):
    flags = flags_of(PrepOptions(dataset="digits"))
    assert similar(word, flags) == ["--dataset"]


def test_last_part_of_a_setting_suggests_the_whole():
    assert similar("--epochs", ["--train.epochs", "--teacher", "--other.epochs"]) == [
        "--train.epochs", "--other.epochs",
    ]  # fmt: skip


@pytest.mark.parametrize("word", ["9" * 5000, "cifar10-" + "a" * 5000, "-" * 5000, ""])
def test_words_of_thousands_of_letters_are_not_compared_letter_by_letter(word, monkeypatch):
    monkeypatch.setattr("fastpeer.suggestions.edit_distance", lambda word, other: pytest.fail(word))
    assert similar(word, ["cifar10-resnet18", "cifar100-resnet18"]) in ([], ["cifar10-resnet18"])


@given(WORDS, WORDS)
def test_edit_distance_is_that_of_the_recurrence(word, other):
    def distance(i, j):
        if not i or not j:
            return i + j
        found = min(distance(i - 1, j) + 1, distance(i, j - 1) + 1)
        found = min(found, distance(i - 1, j - 1) + (word[i - 1] != other[j - 1]))
        if i > 1 and j > 1 and (word[i - 1], word[i - 2]) == (other[j - 2], other[j - 1]):
            found = min(found, distance(i - 2, j - 2) + 1)
        return found

    assert edit_distance(word[:4], other[:4]) == (distance(min(len(word), 4), min(len(other), 4)))


@given(st.text(string.ascii_lowercase, min_size=4, max_size=9), st.data())
def test_one_slip_is_one_edit(word, data):
    place = data.draw(st.integers(0, len(word) - 2))
    swapped = word[:place] + word[place + 1] + word[place] + word[place + 2 :]
    assert edit_distance(swapped, word) <= 1
    assert edit_distance(word[:place] + word[place + 1 :], word) == 1
