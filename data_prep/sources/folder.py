"""Images in `train/<class>/` and `test/<class>/` (or `val/<class>/`), in a folder or an archive.

`train`, `test` and `val` may be written in any letter case.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from fastpeer.data_prep.archive import FileTree
from fastpeer.data_prep.sources.official import recognised
from fastpeer.data_prep.sources.source import DrawnPart, LabelledFiles, Source, shortened, source_of_files
from fastpeer.errors import UserError

TEST_NAMES = ("test", "val", "valid", "validation")
MAX_PARENTS = 2


def read_folder(tree: FileTree, size: int | None, draw: DrawnPart | None = None) -> Source:
    """Read an image folder: classes by name, images by class, then by file name.

    Args:
        tree: the files.
        size: side of the images in pixels; None: that of the first one.
        draw: for a folder without a test split; its classes may then lie in no train/ either.
    """
    if name := recognised(tree):
        raise UserError(f"{tree.label} has the files of an official data set: pass --dataset {name}")
    root = find_root(tree)
    if draw is not None:
        return _read_without_test(tree, root, size, draw)
    if root is None:
        raise UserError(
            f"{tree.label} has no train/<class>/ folders with images: pass a folder that has, or for"
            " <class>/ folders alone --test-fraction 0.2"
        )
    return read_image_folder(tree, root, size)


def read_official(tree: FileTree, root: str, size: int | None, classes: Sequence[str]) -> Source:
    """Read an image folder whose classes have to be exactly `classes`, in that order."""
    found = tree.children(_train_folder(tree, root))
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


def image_folder_root(tree: FileTree, lacking: str) -> str:
    """Return what stands before `train/<class>/` in a tree that lacks an official data set's files.

    Raises:
        UserError: it has another's, or no such folders: `lacking` is what it has not, and what to pass.
    """
    if name := recognised(tree):
        raise UserError(f"{tree.label} has the files of another data set: pass --dataset {name}")
    root = find_root(tree)
    if root is None:
        raise UserError(f"{tree.label} {lacking}")
    return root


def read_image_folder(
    tree: FileTree, root: str, size: int | None, classes: Sequence[str] | None = None
) -> Source:
    """Read `<root>train/` and `<root>test/` (or else `<root>val/`); classes are those of train."""
    train = _train_folder(tree, root)
    ordered = list(classes) if classes is not None else tree.children(train)
    test = _test_folder(tree, root)
    if test is None:
        raise UserError(
            f"{tree.label} has no {root}test/<class>/ or {root}val/<class>/ images: add them, or let"
            " --dataset folder --test-fraction 0.2 draw them"
        )
    if odd := sorted(set(tree.children(test)) - set(ordered)):
        raise UserError(
            f"{tree.label}/{test}{odd[0]} is a class that train/ lacks: add it there or remove it"
        )
    train_files = list_classes(tree, train, ordered)
    source = source_of_files(tree, ordered, train_files, list_classes(tree, test, ordered), size)
    return replace(source, notes=_notes(tree, root, train, test))


def _read_without_test(tree: FileTree, root: str | None, size: int | None, draw: DrawnPart) -> Source:
    if root is not None and (test := _test_folder(tree, root)):
        raise UserError(f"{tree.label}/{test} is the test split: leave --test-fraction out")
    train = _train_folder(tree, root) if root is not None else _classes_alone(tree)
    classes = tree.children(train)
    names, labels = list_classes(tree, train, classes)
    if not names:
        raise UserError(f"{tree.label} has no <class>/ folders with images: pass a folder that has")
    chosen = _drawn(names, labels, train, draw)
    kept, drawn = (
        [(name, label) for name, label in zip(names, labels, strict=True) if (name in chosen) == in_test]
        for in_test in (False, True)
    )
    source = source_of_files(tree, classes, _unzipped(kept), _unzipped(drawn), size)
    notes = _notes(tree, root, train) if root is not None else ()
    return replace(source, notes=notes, draw=draw)


def _drawn(names: list[str], labels: list[int], train: str, draw: DrawnPart) -> set[str]:
    """Choose the test images of each class, whatever folder the data set lies in."""
    by_class: dict[int, list[str]] = {}
    for name, label in zip(names, labels, strict=True):
        by_class.setdefault(label, []).append(name[len(train) :])
    return {train + name for members in by_class.values() for name in draw.of(members)}


def _unzipped(files: list[tuple[str, int]]) -> LabelledFiles:
    return [name for name, _ in files], [label for _, label in files]


def _classes_alone(tree: FileTree) -> str:
    """Return the folder of the class folders: the tree's own, or one that all files lie below."""
    folder = ""
    for _ in range(MAX_PARENTS):
        children = tree.children(folder)
        if len(children) == 1 and tree.children(f"{folder}{children[0]}/"):
            folder += f"{children[0]}/"
    return folder


def _notes(tree: FileTree, root: str, train: str, test: str | None = None) -> tuple[str, ...]:
    """Tell which of the folders beside train/ is the test split, where that is not plain, and which none."""
    notes = []
    if test is not None and test[len(root) :].lower() != "test/":
        notes.append(f"{tree.label} has no {root}test/<class>/ images: {test} is taken as the test split")
    others = [f"{root}{name}/" for name in tree.children(root)]
    unused = [folder for folder in others if folder not in (train, test) and tree.below(folder)]
    if unused:
        notes.append(
            f"left out: {shortened(unused)} (validation images are held out of {train},"
            f" test images are {'those of ' + test if test else 'drawn'})"
        )
    return tuple(notes)


def find_root(tree: FileTree) -> str | None:
    """Return what stands before `train/<class>/`, such as "" or "photos/", or None."""
    for folder in sorted(tree.folders, key=lambda name: (name.count("/"), name)):
        parts = folder.split("/")
        if len(parts) <= MAX_PARENTS + 1 and parts[-1].lower() == "train" and tree.children(f"{folder}/"):
            return folder[: -len("train")]
    return None


def split_folder(tree: FileTree, root: str, name: str) -> str | None:
    """Return the folder of a split, such as "photos/Train/" for train, or None where it has no class folders.

    Args:
        tree: the files.
        root: what stands before the split's folder.
        name: of the split, in lower case.
    """
    spellings = [child for child in tree.children(root) if child.lower() == name]
    folders = [folder for child in spellings if tree.children(folder := f"{root}{child}/")]
    # Sorted by children(): the spelling in lower case comes last.
    return folders[-1] if folders else None


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


def _train_folder(tree: FileTree, root: str) -> str:
    folder = split_folder(tree, root, "train")
    assert folder is not None  # find_root found it
    return folder


def _test_folder(tree: FileTree, root: str) -> str | None:
    for name in TEST_NAMES:
        if (folder := split_folder(tree, root, name)) is not None:
            return folder
    return None
