"""Random numbers that are a function of (seed, purpose, counters), so that any of them can be drawn again.

Nothing is remembered between draws: a run that stops and goes on, or reads its images in another
order, sees the same ones.
"""

import zlib

import numpy as np
import torch

from fastpeer.kernels.counter_bits import mixed


def counter_key(seed: int, purpose: str, *counters: int) -> int:
    """Mix a seed, a purpose and any counters into 64 bits."""
    key = 0
    for word in (seed, zlib.crc32(purpose.encode()), *counters):
        key = mixed(key, word)
    return key


def generator(device: torch.device, seed: int, purpose: str, *counters: int) -> torch.Generator:
    """Return a fresh torch generator for one draw on `device`."""
    # Generators take 63 bits.
    return torch.Generator(device).manual_seed(counter_key(seed, purpose, *counters) >> 1)


def permutation(indices: np.ndarray, seed: int, purpose: str, *counters: int) -> np.ndarray:
    """Return `indices` in random order."""
    return np.random.default_rng(counter_key(seed, purpose, *counters)).permutation(indices)
