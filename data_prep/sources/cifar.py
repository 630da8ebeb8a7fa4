"""CIFAR-10 and CIFAR-100: the official pickles, or an image folder with the official classes."""

from __future__ import annotations

import hashlib
import io
import pickle
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from fastpeer.data_prep.archive import FileTree
from fastpeer.data_prep.images import PixelForm, Pixels
from fastpeer.data_prep.sources.folder import image_folder_root, read_official
from fastpeer.data_prep.sources.source import ArraySplit, Source
from fastpeer.errors import UserError, one_line

SIDE = 32

CIFAR10_NAMES = "airplane automobile bird cat deer dog frog horse ship truck"

CIFAR100_NAMES = """
apple aquarium_fish baby bear beaver bed bee beetle bicycle bottle bowl boy bridge bus butterfly
camel can castle caterpillar cattle chair chimpanzee clock cloud cockroach couch crab crocodile cup
dinosaur dolphin elephant flatfish forest fox girl hamster house kangaroo keyboard lamp lawn_mower
leopard lion lizard lobster man maple_tree motorcycle mountain mouse mushroom oak_tree orange orchid
otter palm_tree pear pickup_truck pine_tree plain plate poppy porcupine possum rabbit raccoon ray
road rocket rose sea seal shark shrew skunk skyscraper snail snake spider squirrel streetcar
sunflower sweet_pepper table tank telephone television tiger tractor train trout tulip turtle
wardrobe whale willow_tree wolf woman worm
"""


@dataclass(frozen=True)
class Layout:
    """File names and keys of one of the two sets, and its official classes in order."""

    train: tuple[str, ...]
    test: tuple[str, ...]
    meta: str
    label_key: bytes
    classes_key: bytes
    classes: Sequence[str]

    @property
    def files(self) -> tuple[str, ...]:
        """All files that have to be there."""
        return (*self.train, *self.test, self.meta)


CIFAR10 = Layout(
    train=tuple(f"data_batch_{number}" for number in range(1, 6)),
    test=("test_batch",),
    meta="batches.meta",
    label_key=b"labels",
    classes_key=b"label_names",
    classes=CIFAR10_NAMES.split(),
)
CIFAR100 = Layout(
    train=("train",),
    test=("test",),
    meta="meta",
    label_key=b"fine_labels",
    classes_key=b"fine_label_names",
    classes=CIFAR100_NAMES.split(),
)


def read_cifar10(tree: FileTree, size: int | None) -> Source:
    """Read CIFAR-10, samples in the order of the batches."""
    return _read(tree, size, CIFAR10)


def read_cifar100(tree: FileTree, size: int | None) -> Source:
    """Read CIFAR-100 with its 100 fine labels."""
    return _read(tree, size, CIFAR100)


def _read(tree: FileTree, size: int | None, layout: Layout) -> Source:
    if folders := tree.folders_with(layout.meta):
        return _read_pickles(tree, folders[0], size, layout)
    lacking = f"holds neither {', '.join(layout.files)} nor train/<class>/ images: pass the official archive"
    root = image_folder_root(tree, lacking)
    return read_official(tree, root, size, layout.classes)


def _read_pickles(tree: FileTree, root: str, size: int | None, layout: Layout) -> Source:
    for name in layout.files:
        if root + name not in tree.sizes:
            raise UserError(f"{tree.label} lacks {root}{name}: fetch the archive again")
    classes = _class_names(tree, root + layout.meta, layout)
    form = PixelForm(size or SIDE, size or SIDE, resize=True)
    md5 = {name: _md5(tree.read(root + name)) for name in (*layout.train, *layout.test)}

    def split(names: Sequence[str]) -> ArraySplit:
        batches = [_batch(tree, root + name, layout, len(classes)) for name in names]
        labels = [label for _, _, batch_labels in batches for label in batch_labels]
        return ArraySplit([(name, images) for name, images, _ in batches], labels, form)

    return Source(classes, split(layout.train), split(layout.test), md5=md5)


def _md5(data: bytes) -> str:
    return hashlib.md5(data, usedforsecurity=False).hexdigest()


def _class_names(tree: FileTree, name: str, layout: Layout) -> list[str]:
    shown = f"{tree.label}/{name}"
    names = _unpickle(tree.pop(name), shown).get(layout.classes_key)
    if not isinstance(names, list) or not all(isinstance(entry, bytes | str) for entry in names):
        raise UserError(f"{shown} has no {layout.classes_key.decode()}: fetch the archive again")
    return [entry.decode("utf-8", "replace") if isinstance(entry, bytes) else entry for entry in names]


def _batch(tree: FileTree, name: str, layout: Layout, classes: int) -> tuple[str, Pixels, list[int]]:
    """Return a batch's shown name, its images (N × 32 × 32 × 3) and labels, all checked."""
    shown = f"{tree.label}/{name}"
    content = _unpickle(tree.pop(name), shown)
    data, labels = content.get(b"data"), content.get(layout.label_key)
    if not isinstance(data, np.ndarray) or data.dtype != np.uint8 or data.shape[1:] != (3 * SIDE * SIDE,):
        raise UserError(f"{shown} holds no uint8 array of N x {3 * SIDE * SIDE}: fetch the archive again")
    if not isinstance(labels, list) or len(labels) != len(data) or not len(data):
        raise UserError(f"{shown} does not have one label for each image: fetch the archive again")
    for index, label in enumerate(labels):
        if not isinstance(label, int) or not 0 <= label < classes:
            raise UserError(
                f"{shown}: label of image {index} must be 0 to {classes - 1}, got {label!r}: do not use it"
            )
    return shown, data.reshape(-1, 3, SIDE, SIDE).transpose(0, 2, 3, 1), labels


def _unpickle(data: bytes, shown: str) -> dict[bytes, Any]:
    try:
        content = _ArrayUnpickler(data, shown).load()
    except UserError:
        raise
    except Exception as error:  # a broken pickle raises nearly anything
        raise UserError(f"{shown} is damaged ({one_line(error)}): fetch the archive again") from error
    if not isinstance(content, dict):
        raise UserError(f"{shown} is not a CIFAR file: fetch the archive again")
    return content


class _ArrayUnpickler(pickle.Unpickler):
    """Loads plain values and arrays only, since a pickle can otherwise run any program."""

    def __init__(self, data: bytes, shown: str) -> None:
        super().__init__(io.BytesIO(data), encoding="bytes")
        self._shown = shown

    def find_class(self, module: str, name: str) -> Any:
        """Return a function that rebuilds an array; UserError for any other name."""
        if (module, name) == ("_codecs", "encode"):
            return _encode
        if module.split(".")[0] == "numpy" and name in _ARRAY_PARTS:
            return _ARRAY_PARTS[name]
        raise UserError(
            f"{self._shown} would run {module}.{name}, which is no part of a data set: do not use this file"
        )


# NumPy moved the modules of its two rebuilding functions between versions; an array knows where they are.
_ARRAY_PARTS = {
    "ndarray": np.ndarray,
    "dtype": np.dtype,
    "_reconstruct": np.empty(0).__reduce__()[0],
    "_frombuffer": np.empty(0).__reduce_ex__(5)[0],
}


def _encode(text: str, encoding: str) -> bytes:
    """Rebuild bytes as Python 3 writes them into old pickles."""
    if encoding not in ("latin1", b"latin1"):
        raise ValueError(f"unexpected encoding {encoding!r}")
    return text.encode("latin1")
