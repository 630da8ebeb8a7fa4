"""Random bits as a function of a key and a counter, mixed by SplitMix64 (Steele, Lea, Flood, OOPSLA 2014).

On tensors everything is an operation on int64, which wraps around as uint64 does, on the device that
holds the counters.
"""

from torch import Tensor

GOLDEN = 0x9E3779B97F4A7C15
FIRST = 0xBF58476D1CE4E5B9
SECOND = 0x94D049BB133111EB
_MASK = (1 << 64) - 1


def random_bits(key: int | Tensor, indices: Tensor) -> Tensor:
    """Return 64 random bits for each index.

    Args:
        key: 64 bits, as an int or as an int64 tensor () on the device of `indices`.
        indices: int64, any shape.

    Returns:
        int64, of the shape and on the device of `indices`.
    """
    return _mixed_tensor(indices * signed(GOLDEN) + (signed(key) if isinstance(key, int) else key))


def step_key(key: Tensor, number: Tensor) -> Tensor:
    """Mix a step's number into a key without leaving the device: `mixed`, on int64 tensors ()."""
    return _mixed_tensor(key + signed(GOLDEN) + number)


def mixed(key: int, word: int) -> int:
    """Mix a word into a key, both of 64 bits."""
    z = (key + GOLDEN + word) & _MASK
    z = (z ^ (z >> 30)) * FIRST & _MASK
    z = (z ^ (z >> 27)) * SECOND & _MASK
    return z ^ (z >> 31)


def shifted(bits: Tensor, places: int) -> Tensor:
    """Shift int64 bits to the right, filling with zeros."""
    return (bits >> places) & ((1 << (64 - places)) - 1) if places else bits


def signed(word: int) -> int:
    """Return the int64 that has the bits of a uint64."""
    return word - (1 << 64) if word >> 63 else word


def _mixed_tensor(z: Tensor) -> Tensor:
    z = (z ^ shifted(z, 30)) * signed(FIRST)
    z = (z ^ shifted(z, 27)) * signed(SECOND)
    return z ^ shifted(z, 31)
