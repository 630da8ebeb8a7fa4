"""The official data sets: how they are recognised."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

from fastpeer.data_prep.archive import FileTree

MARKS: Mapping[str, tuple[str, ...]] = MappingProxyType(
    {
        "cifar10": ("batches.meta", "data_batch_1"),
        "cifar100": ("meta", "train", "test"),
        "tiny": ("wnids.txt",),
    }
)
"""Files, side by side, that only the data set of that name has."""


def recognised(tree: FileTree) -> str | None:
    """Return the name of the official data set whose files lie in a tree, or None."""
    for dataset, marks in MARKS.items():
        roots = [name[: -len(marks[0])] for name in tree.sizes if name.split("/")[-1] == marks[0]]
        if any(all(root + mark in tree.sizes for mark in marks) for root in roots):
            return dataset
    return None
