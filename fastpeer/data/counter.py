"""Counter-based random numbers: each is a function of (seed, purpose, counters).

There is no state between draws, and none to save: a run that is resumed, or reads its images in another
order, draws the same numbers.
"""

import zlib

import numpy as np
import torch

from fastpeer.kernels.counter_bits import mixed


def counter_key(seed: int, purpose: str, *counters: int) -> int:
    """Mix a seed, a purpose and counters into a 64-bit key.

    Args:
        seed: the run's seed.
        purpose: what is drawn, such as "train order"; different purposes give independent numbers.
        counters: such as the epoch.
    """
    key = 0
    # CRC-32 rather than hash(), which differs from process to process.
    for word in (seed, zlib.crc32(purpose.encode()), *counters):
        key = mixed(key, word)
    return key


def generator(device: torch.device, seed: int, purpose: str, *counters: int) -> torch.Generator:
    """Return a new torch generator on `device`, seeded with `counter_key`."""
    # Torch's seeds have 63 bits.
    return torch.Generator(device).manual_seed(counter_key(seed, purpose, *counters) >> 1)


def permutation(indices: np.ndarray, seed: int, purpose: str, *counters: int) -> np.ndarray:
    """Return a copy of `indices` in random order, seeded with `counter_key`."""
    return np.random.default_rng(counter_key(seed, purpose, *counters)).permutation(indices)
