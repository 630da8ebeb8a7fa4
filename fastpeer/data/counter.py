"""Random numbers that are a function of (seed, purpose, counters), so that any of them can be drawn again.

Nothing is remembered between draws: a run that stops and goes on, or reads its images in another
order, sees the same ones. The mixing function is SplitMix64's (Steele, Lea, Flood, OOPSLA 2014).
"""

import zlib

import numpy as np
import torch
from torch import Tensor

_GOLDEN = 0x9E3779B97F4A7C15
_FIRST = 0xBF58476D1CE4E5B9
_SECOND = 0x94D049BB133111EB
_MASK = (1 << 64) - 1


def counter_key(seed: int, purpose: str, *counters: int) -> int:
    """Mix a seed, a purpose and any counters into 64 bits."""
    key = 0
    for word in (seed, zlib.crc32(purpose.encode()), *counters):
        key = _mix_int((key + _GOLDEN + word) & _MASK)
    return key


def generator(device: torch.device, seed: int, purpose: str, *counters: int) -> torch.Generator:
    """Return a fresh torch generator for one draw on `device`."""
    # Generators take 63 bits.
    return torch.Generator(device).manual_seed(counter_key(seed, purpose, *counters) >> 1)


def permutation(indices: np.ndarray, seed: int, purpose: str, *counters: int) -> np.ndarray:
    """Return `indices` in random order."""
    return np.random.default_rng(counter_key(seed, purpose, *counters)).permutation(indices)


def random_bits(key: int, indices: Tensor) -> Tensor:
    """Return 64 random bits for each sample index: int64, of the shape and on the device of `indices`."""
    return _mix_tensor(indices * _signed(_GOLDEN) + _signed(key))


def _mix_int(z: int) -> int:
    z = (z ^ (z >> 30)) * _FIRST & _MASK
    z = (z ^ (z >> 27)) * _SECOND & _MASK
    return z ^ (z >> 31)


def _mix_tensor(z: Tensor) -> Tensor:
    """As `_mix_int`; int64 wraps around as uint64 does, only shifts must be told not to keep the sign."""
    z = (z ^ shifted(z, 30)) * _signed(_FIRST)
    z = (z ^ shifted(z, 27)) * _signed(_SECOND)
    return z ^ shifted(z, 31)


def shifted(bits: Tensor, places: int) -> Tensor:
    """Shift int64 bits to the right, filling with zeros."""
    return (bits >> places) & ((1 << (64 - places)) - 1) if places else bits


def _signed(word: int) -> int:
    return word - (1 << 64) if word >> 63 else word
