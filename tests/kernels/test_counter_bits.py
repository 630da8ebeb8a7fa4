"""Random bits from keys and counters."""

import torch
from hypothesis import given
from hypothesis import strategies as st

from fastpeer.kernels.counter_bits import mixed, random_bits, shifted, signed, step_key

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
    bits = random_bits(key, torch.tensor([index]))
    assert bits.item() & MASK == split_mix_64((index * 0x9E3779B97F4A7C15 + key) & MASK)
    assert torch.equal(bits, random_bits(torch.tensor(signed(key)), torch.tensor([index])))


@given(key=WORDS, number=st.integers(0, 2**62))
def test_a_steps_key_is_the_same_on_the_device_and_in_python(key, number):
    on_device = step_key(torch.tensor(signed(key)), torch.tensor(number))
    assert on_device.dtype == torch.int64
    assert on_device.item() == signed(mixed(key, number))
    assert mixed(key, number) == split_mix_64((key + 0x9E3779B97F4A7C15 + number) & MASK)


@given(word=WORDS, places=st.integers(0, 63))
def test_shifts_fill_with_zeros(word, places):
    assert shifted(torch.tensor(signed(word)), places).item() & MASK == word >> places
