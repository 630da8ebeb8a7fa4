"""Random numbers from counters."""

import numpy as np
import torch
from hypothesis import given
from hypothesis import strategies as st

from fastpeer.data.counter import counter_key, generator, permutation, random_bits, shifted

MASK = (1 << 64) - 1
WORDS = st.integers(0, MASK)


def split_mix_64(state):
    """Sebastiano Vigna's public-domain C code: the output for a state that was just advanced."""
    z = ((state ^ (state >> 30)) * 0xBF58476D1CE4E5B9) & MASK
    z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) & MASK
    return z ^ (z >> 31)


def test_bits_are_the_published_outputs_of_split_mix_64():
    bits = random_bits(1234567, torch.arange(1, 6))
    assert [value & MASK for value in bits.tolist()] == [
        6457827717110365317,
        3203168211198807973,
        9817491932198370423,
        4593380528125082431,
        16408922859458223821,
    ]


@given(key=WORDS, index=st.integers(0, 2**62))
def test_bits_equal_plain_integer_arithmetic(key, index):
    bits = random_bits(key, torch.tensor([index])).item()
    assert bits & MASK == split_mix_64((index * 0x9E3779B97F4A7C15 + key) & MASK)


@given(word=WORDS, places=st.integers(0, 63))
def test_shifts_fill_with_zeros(word, places):
    signed = torch.tensor(word if word < 1 << 63 else word - (1 << 64))
    assert shifted(signed, places).item() & MASK == word >> places


def test_keys_differ_in_seed_purpose_and_each_counter_in_its_place():
    calls = [(0, "a"), (1, "a"), (0, "b"), (0, "a", 0), (0, "a", 1), (0, "a", 0, 1), (0, "a", 1, 0)]
    keys = [counter_key(*call) for call in calls]
    assert len(set(keys)) == len(calls)
    assert keys == [counter_key(*call) for call in calls]


def test_draws_can_be_repeated_and_permutations_keep_all_indices():
    indices = np.arange(100, 200)
    order = permutation(indices, 0, "order", 3)
    assert sorted(order) == list(indices)
    assert np.array_equal(order, permutation(indices, 0, "order", 3))
    assert not np.array_equal(order, permutation(indices, 0, "order", 4))
    draws = [torch.rand(3, generator=generator(torch.device("cpu"), 2**63 - 1, "x")) for _ in range(2)]
    assert torch.equal(*draws)
