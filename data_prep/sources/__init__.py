"""The data sets that can be prepared: `open_source` finds the reader that answers for a name."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from types import MappingProxyType

from fastpeer.data_prep.archive import FileTree, open_tree
from fastpeer.data_prep.images import JpegForm
from fastpeer.data_prep.sources.cifar import read_cifar10, read_cifar100
from fastpeer.data_prep.sources.digits import read_digits
from fastpeer.data_prep.sources.folder import read_folder
from fastpeer.data_prep.sources.official import pixels_of
from fastpeer.data_prep.sources.source import DrawnPart, Source
from fastpeer.data_prep.sources.tiny import read_tiny

READERS: Mapping[str, Callable[[FileTree, int | None], Source]] = MappingProxyType(
    {"cifar10": read_cifar10, "cifar100": read_cifar100, "tiny": read_tiny, "folder": read_folder}
)
"""For each data set that lies in files, what reads it, given the tree and the side in pixels or None."""


@dataclass(frozen=True)
class Origin:
    """Where a data set came from, as `dataset.json` keeps it.

    Attributes:
        name: of the folder or archive.
        kind: "bundled", "folder", "archive" or "download".
        sha256: of the archive, or of a folder's names and sizes; None for a bundled data set.
    """

    name: str
    kind: str
    sha256: str | None


def open_source(
    dataset: str,
    path: Path | None,
    size: int | None,
    draw: DrawnPart | None = None,
    jpeg: JpegForm | None = None,
) -> tuple[Source, Origin]:
    """Open what is at `path` as the data set called `dataset`; no path: the bundled digits.

    `draw` is for image folders without a test split, `jpeg` for files that are to be kept as JPEG.

    Raises:
        UserError: it cannot be read, or holds something else.
    """
    if path is None:
        return read_digits(size), Origin("scikit-learn load_digits", "bundled", None)
    tree = open_tree(path)
    source = read_folder(tree, size, draw) if draw else READERS[dataset](tree, size)
    source = source.kept_as_jpeg(jpeg) if jpeg else source
    source = replace(source, pixels=pixels_of(dataset, tree, source))
    return source, Origin(tree.label, tree.kind, tree.digest())
