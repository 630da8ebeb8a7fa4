"""Images in `train/<class>/` and `test/<class>/` (or `val/<class>/`), in a folder or an archive."""

from __future__ import annotations

from collections.abc import Sequence

from fastpeer.data_prep.archive import FileTree
from fastpeer.data_prep.sources.source import LabelledFiles, Source, source_of_files
from fastpeer.errors import UserError

TEST_NAMES = ("test", "val")
MAX_PARENTS = 2


def read_folder(tree: FileTree, size: int | None) -> Source:
    """Read an image folder: classes by name, images by class, then by file name."""
    root = find_root(tree)
    if root is None:
        raise UserError(f"{tree.label} has no train/<class>/ folders with images: pass a folder that has")
    return read_image_folder(tree, root, size)


def read_official(tree: FileTree, root: str, size: int | None, classes: Sequence[str]) -> Source:
    """Read an image folder whose classes have to be exactly `classes`, in that order."""
    found = tree.children(f"{root}train/")
    if odd := [name for name in found if name not in classes]:
        raise UserError(
            f"{tree.label} has classes that the official data set has not ({', '.join(odd[:5])}): "
            "rename them or pass --dataset folder"
        )
    if lacking := [name for name in classes if name not in found]:
        raise UserError(
            f"{tree.label} lacks official classes ({', '.join(lacking[:5])}): "
            "add them or pass --dataset folder"
        )
    return read_image_folder(tree, root, size, classes)


def read_image_folder(
    tree: FileTree, root: str, size: int | None, classes: Sequence[str] | None = None
) -> Source:
    """Read `<root>train/` and `<root>test/` (or else `<root>val/`); classes are those of train."""
    ordered = list(classes) if classes is not None else tree.children(f"{root}train/")
    test = _test_folder(tree, root)
    if odd := sorted(set(tree.children(test)) - set(ordered)):
        raise UserError(
            f"{tree.label}/{test}{odd[0]} is a class that train/ lacks: add it there or remove it"
        )
    train_files = list_classes(tree, f"{root}train/", ordered)
    return source_of_files(tree, ordered, train_files, list_classes(tree, test, ordered), size)


def find_root(tree: FileTree) -> str | None:
    """Return what stands before `train/<class>/`, such as "" or "photos/", or None."""
    for folder in sorted(tree.folders, key=lambda name: (name.count("/"), name)):
        parts = folder.split("/")
        if len(parts) <= MAX_PARENTS + 1 and parts[-1] == "train" and tree.children(f"{folder}/"):
            return folder[: -len("train")]
    return None


def list_classes(tree: FileTree, folder: str, classes: Sequence[str]) -> LabelledFiles:
    """Return all files of `folder` that belong to `classes`, by class and then by name.

    Raises:
        UserError: a class folder is empty, or a file lies in no class folder.
    """
    by_class = _files_by_class(tree, folder)
    names: list[str] = []
    labels: list[int] = []
    for label, class_name in enumerate(classes):
        files = by_class.get(class_name)
        if files is not None and not files:
            raise UserError(
                f"{tree.label}/{folder}{class_name} holds no images: add some or remove the folder"
            )
        names += files or []
        labels += [label] * len(files or [])
    return names, labels


def _files_by_class(tree: FileTree, folder: str) -> dict[str, list[str]]:
    by_class: dict[str, list[str]] = {name: [] for name in tree.children(folder)}
    for name in tree.below(folder):
        class_name, _, rest = name[len(folder) :].partition("/")
        if not rest:
            raise UserError(f"{tree.label}/{name} lies in no class folder: move it into one or remove it")
        by_class[class_name].append(name)
    return by_class


def _test_folder(tree: FileTree, root: str) -> str:
    for name in TEST_NAMES:
        if tree.children(f"{root}{name}/"):
            return f"{root}{name}/"
    raise UserError(f"{tree.label} has no {root}test/<class>/ or {root}val/<class>/ images: add them")
