"""What a data set offers to the writer, and which reader answers for which name."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import accumulate
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from PIL import Image

from fastpeer.data_prep.image import Pixels, Target, decode
from fastpeer.data_prep.tree import FileTree

if TYPE_CHECKING:
    from fastpeer.data_prep.jpeg import Jpeg, JpegForm


class Split(Protocol):
    """The images of one split; processes forked from the one that made it can read it too."""

    @property
    def labels(self) -> Sequence[int]:
        """One class index for each sample."""

    @property
    def target(self) -> Target | JpegForm:
        """How the images are kept; that of the source."""

    def __getitem__(self, index: int) -> tuple[Pixels | Jpeg, int]:
        """Return a sample's image as it is to be stored, and its label."""

    def name_of(self, index: int) -> str:
        """Return a sample's name for messages."""


@dataclass(frozen=True)
class Source:
    """A data set ready to be written.

    Attributes:
        classes: class names; a label is an index into them.
        train, test: the two splits.
        target: height and width of every image, or how images of many sizes are kept.
        class_names: readable names where `classes` are codes.
    """

    classes: list[str]
    train: Split
    test: Split
    target: Target | JpegForm
    class_names: list[str] = field(default_factory=list)

    @property
    def splits(self) -> dict[str, Split]:
        """The splits by name."""
        return {"train": self.train, "test": self.test}


@dataclass(frozen=True)
class EncodedSplit:
    """Image files of a tree, decoded one by one when they are asked for."""

    tree: FileTree
    names: list[str]
    labels: list[int]
    target: Target

    def __getitem__(self, index: int) -> tuple[Pixels, int]:
        shown = self.name_of(index)
        image = decode(self.tree.read(self.names[index]), shown)
        return self.target.fit(image, shown), self.labels[index]

    def name_of(self, index: int) -> str:
        """Return the file's name below the folder or archive."""
        return f"{self.tree.label}/{self.names[index]}"


class ArraySplit:
    """Images that lie in memory.

    Args:
        batches: pairs of a name and an array of images, N × height × width × 3, uint8.
        labels: one for each image of all batches.
        target: size to bring them to.
    """

    def __init__(self, batches: Sequence[tuple[str, Pixels]], labels: list[int], target: Target) -> None:
        self.batches = batches
        self.labels = labels
        self.target = target
        self._ends = list(accumulate(len(images) for _, images in batches))

    def __getitem__(self, index: int) -> tuple[Pixels, int]:
        batch, row = self._place(index)
        image = Image.fromarray(self.batches[batch][1][row])
        return self.target.fit(image, self.name_of(index)), self.labels[index]

    def name_of(self, index: int) -> str:
        """Return the batch's name and the image's number in it."""
        batch, row = self._place(index)
        return f"image {row} of {self.batches[batch][0]}"

    def _place(self, index: int) -> tuple[int, int]:
        batch = bisect_right(self._ends, index)
        return batch, index - (self._ends[batch - 1] if batch else 0)


@dataclass(frozen=True)
class Origin:
    """Where a data set came from, as `dataset.json` keeps it."""

    name: str
    kind: str
    sha256: str | None


def open_source(dataset: str, path: Path | None, size: int | None) -> tuple[Source, Origin]:
    """Open what is at `path` as the data set called `dataset`.

    Raises:
        UserError: it cannot be read, or holds something else.
    """
    from fastpeer.data_prep.digits import read_digits
    from fastpeer.data_prep.tree import open_tree

    if path is None:
        return read_digits(size), Origin("scikit-learn load_digits", "bundled", None)
    tree = open_tree(path)
    return _readers()[dataset](tree, size), Origin(tree.label, tree.kind, tree.digest())


def _readers() -> Mapping[str, Callable[[FileTree, int | None], Source]]:
    from fastpeer.data_prep.cifar import read_cifar10, read_cifar100
    from fastpeer.data_prep.folder import read_folder
    from fastpeer.data_prep.tiny import read_tiny

    return {"cifar10": read_cifar10, "cifar100": read_cifar100, "tiny": read_tiny, "folder": read_folder}
