"""Whether a network fits into this machine, before it is built; this module does not import PyTorch."""

import os
from collections.abc import Iterable
from contextlib import suppress
from itertools import pairwise
from pathlib import Path

from fastpeer.errors import UserError
from fastpeer.models.names import wide_resnet_size

TO_LOAD = 2
"""Copies of the weights that are held at once: the network's, and those that are read for it."""
TO_TRAIN = 4
"""Weights, gradients, momenta, and those that the attack is made on or that are averaged."""
CONTAINER_LIMIT = Path("/sys/fs/cgroup/memory.max")


def refuse_too_large(names: Iterable[str], classes: int, copies: int) -> None:
    """Refuse networks whose float32 weights this machine has no memory for, so many copies of each.

    Only of wide ResNets the size is free; the others fit anywhere.

    Raises:
        UserError: they are too large.
    """
    counts = [(wide_resnet_parameters(name, classes), name) for name in names]
    needed, memory = 4 * copies * sum(count for count, _ in counts), machine_memory()
    if needed > memory:
        count, name = max(counts)
        raise UserError(
            f"network {name} has {count:,} parameters: at least {needed / 1e9:,.1f} GB of memory are needed,"
            f" this machine has {memory / 1e9:,.1f}"
        )


def wide_resnet_parameters(name: str, classes: int) -> int:
    """Return the number of parameters of a wide ResNet; 0 for other names."""
    size = wide_resnet_size(name)
    if size is None:
        return 0
    depth, widen = size
    blocks, widths = (depth - 4) // 6, [16, 16 * widen, 32 * widen, 64 * widen]
    total = 27 * 16 + 2 * widths[-1] + (widths[-1] + 1) * classes
    for before, width in pairwise(widths):
        shortcut = before * width if before != width else 0
        first = 2 * before + 9 * before * width + 2 * width + 9 * width**2 + shortcut
        total += first + (blocks - 1) * (4 * width + 18 * width**2)
    return total


def machine_memory() -> int:
    """Return this machine's memory in bytes, or what its container may take of it."""
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    with suppress(OSError, ValueError):  # "max" where there is no limit.
        memory = min(memory, int(CONTAINER_LIMIT.read_text("utf-8")))
    return memory
