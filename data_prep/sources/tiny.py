"""TinyImageNet in its official layout; the official validation images are the test split."""

from __future__ import annotations

from collections.abc import Iterator

from fastpeer.data_prep.archive import FileTree
from fastpeer.data_prep.sources.folder import find_root, list_classes, read_image_folder
from fastpeer.data_prep.sources.source import LabelledFiles, Source, source_of_files
from fastpeer.errors import UserError

CLASS_LIST = "wnids.txt"
ANNOTATIONS = "val/val_annotations.txt"


def read_tiny(tree: FileTree, size: int | None) -> Source:
    """Read the official layout, or an image folder (then with the classes sorted by name).

    Classes come in the order of `wnids.txt`; train images by class, then file name; test images in the
    order of `val/val_annotations.txt`, or by class and file name where `val/` has class folders.
    Any subset of the images will do as long as every class has one to train on.
    """
    lists = [name for name in tree.sizes if name.split("/")[-1] == CLASS_LIST]
    if lists:
        return _read_official(tree, min(lists, key=len)[: -len(CLASS_LIST)], size)
    root = find_root(tree)
    if root is None:
        raise UserError(
            f"{tree.label} has neither wnids.txt nor train/<class>/ images: pass tiny-imagenet-200.zip"
        )
    return read_image_folder(tree, root, size)


def _read_official(tree: FileTree, root: str, size: int | None) -> Source:
    classes = _lines(tree, f"{root}{CLASS_LIST}")
    if not classes or len(set(classes)) != len(classes):
        raise UserError(f"{tree.label}/{root}{CLASS_LIST} is empty or names a class twice: fetch it again")
    train = _train_files(tree, f"{root}train/", classes)
    test = _test_files(tree, root, classes)
    return source_of_files(tree, classes, train, test, size, _readable_names(tree, root, classes))


def _train_files(tree: FileTree, folder: str, classes: list[str]) -> LabelledFiles:
    _refuse_unlisted(tree, folder, classes)
    names, labels = _without_boxes(*list_classes(tree, folder, classes))
    if lacking := set(range(len(classes))) - set(labels):
        raise UserError(
            f"{tree.label}/{folder}{classes[min(lacking)]} holds no images: fetch the archive again"
        )
    return names, labels


def _test_files(tree: FileTree, root: str, classes: list[str]) -> LabelledFiles:
    if f"{root}{ANNOTATIONS}" in tree.sizes:
        names, labels = _annotated(tree, root, classes)
    else:
        _refuse_unlisted(tree, f"{root}val/", classes)
        names, labels = _without_boxes(*list_classes(tree, f"{root}val/", classes))
    if not names:
        raise UserError(f"{tree.label}/{root}val holds no images: fetch the archive again")
    return names, labels


def _annotated(tree: FileTree, root: str, classes: list[str]) -> LabelledFiles:
    """Return the images of `val/images/` that are there, in the order of the annotations."""
    waiting = set(tree.below(f"{root}val/images/"))
    names: list[str] = []
    labels: list[int] = []
    for file, label in _annotations(tree, root, classes):
        name = f"{root}val/images/{file}"
        if name in waiting:
            waiting.remove(name)
            names.append(name)
            labels.append(label)
    if waiting:
        raise UserError(
            f"{tree.label}/{min(waiting)} has no line in {ANNOTATIONS}: add it or remove the image"
        )
    return names, labels


def _annotations(tree: FileTree, root: str, classes: list[str]) -> Iterator[tuple[str, int]]:
    """Yield each line's file name and label."""
    index = {name: label for label, name in enumerate(classes)}
    for number, line in enumerate(_lines(tree, f"{root}{ANNOTATIONS}"), start=1):
        file, _, rest = line.partition("\t")
        class_name = rest.split("\t")[0]
        if class_name not in index:
            raise UserError(
                f"{tree.label}/{root}{ANNOTATIONS} line {number} names no known class: fetch it again"
            )
        yield file, index[class_name]


def _refuse_unlisted(tree: FileTree, folder: str, classes: list[str]) -> None:
    if odd := sorted(set(tree.children(folder)) - set(classes)):
        raise UserError(
            f"{tree.label}/{folder}{odd[0]} is not in {CLASS_LIST}: add it there or remove the folder"
        )


def _without_boxes(names: list[str], labels: list[int]) -> LabelledFiles:
    """Leave out the bounding boxes that lie beside the images."""
    kept = [(name, label) for name, label in zip(names, labels, strict=True) if not name.endswith(".txt")]
    return [name for name, _ in kept], [label for _, label in kept]


def _readable_names(tree: FileTree, root: str, classes: list[str]) -> list[str]:
    """Return what `words.txt` calls the classes; nothing when it is missing or incomplete."""
    if f"{root}words.txt" not in tree.sizes:
        return []
    words = dict(line.partition("\t")[::2] for line in _lines(tree, f"{root}words.txt"))
    return [words[name] for name in classes] if set(classes) <= words.keys() else []


def _lines(tree: FileTree, name: str) -> list[str]:
    text = tree.read(name).decode("utf-8", "replace")
    return [line.strip() for line in text.splitlines() if line.strip()]
