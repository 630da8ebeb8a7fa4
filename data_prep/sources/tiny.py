"""TinyImageNet in its official layout; the official validation images are the test split."""

from __future__ import annotations

from fastpeer.data_prep.archive import FileTree
from fastpeer.data_prep.sources.folder import image_folder_root, list_classes, read_image_folder, split_folder
from fastpeer.data_prep.sources.source import LabelledFiles, Source, source_of_files
from fastpeer.errors import UserError

CLASS_LIST = "wnids.txt"
ANNOTATIONS = "val_annotations.txt"


def read_tiny(tree: FileTree, size: int | None) -> Source:
    """Read the official layout, or an image folder (then with the classes sorted by name).

    Classes come in the order of `wnids.txt`; train images by class, then file name; test images in the
    order of `val/val_annotations.txt`, then those that it lacks, by class folder of `val/` and file name.
    Any subset of the images will do as long as every class has one to train on.
    """
    if folders := tree.folders_with(CLASS_LIST):
        return _read_official(tree, folders[0], size)
    lacking = "has neither wnids.txt nor train/<class>/ images: pass tiny-imagenet-200.zip"
    root = image_folder_root(tree, lacking)
    return read_image_folder(tree, root, size)


def _read_official(tree: FileTree, root: str, size: int | None) -> Source:
    classes = _lines(tree, f"{root}{CLASS_LIST}")
    if not classes or len(set(classes)) != len(classes):
        raise UserError(f"{tree.label}/{root}{CLASS_LIST} is empty or names a class twice: fetch it again")
    train = _train_files(tree, split_folder(tree, root, "train") or f"{root}train/", classes)
    test = _test_files(tree, split_folder(tree, root, "val") or f"{root}val/", classes)
    return source_of_files(tree, classes, train, test, size, _readable_names(tree, root, classes))


def _train_files(tree: FileTree, folder: str, classes: list[str]) -> LabelledFiles:
    _refuse_unlisted(tree, folder, classes)
    names, labels = _without_boxes(*list_classes(tree, folder, classes))
    if lacking := set(range(len(classes))) - set(labels):
        raise UserError(
            f"{tree.label}/{folder}{classes[min(lacking)]} holds no images: fetch the archive again"
        )
    return names, labels


def _test_files(tree: FileTree, folder: str, classes: list[str]) -> LabelledFiles:
    """Return the images of `val/images/` and of class folders, into which a script may have moved some."""
    _refuse_unlisted(tree, folder, [*classes, "images"])
    sorted_by_class = _in_class_folders(tree, folder, classes)
    rest = (name for name in tree.below(folder) if name not in sorted_by_class)
    unsorted = [name for name in rest if not name.endswith(".txt")]
    # An image that was copied to its class counts once.
    by_file = {name.split("/")[-1]: name for name in (*sorted_by_class, *unsorted)}
    annotated = _annotations(tree, folder, classes)
    labels = {by_file[file]: label for file, label in annotated.items() if file in by_file}
    for name, label in sorted_by_class.items():
        if labels.get(name, label) != label:
            raise UserError(f"{tree.label}/{name} lies in another class than {ANNOTATIONS} tells: move it")
        if name.split("/")[-1] not in annotated:
            labels[name] = label
    if waiting := set(unsorted) - labels.keys():
        raise UserError(
            f"{tree.label}/{min(waiting)} has no line in {ANNOTATIONS}: add it or remove the image"
        )
    if not labels:
        raise UserError(f"{tree.label}/{folder.rstrip('/')} holds no images: fetch the archive again")
    return list(labels), list(labels.values())


def _in_class_folders(tree: FileTree, folder: str, classes: list[str]) -> dict[str, int]:
    """Return the label of each image that lies in a class folder, by class and then by name."""
    index = {name: label for label, name in enumerate(classes)}
    found = []
    for name in tree.below(folder):
        class_name, _, rest = name[len(folder) :].partition("/")
        if rest and class_name in index and not name.endswith(".txt"):
            found.append((index[class_name], name))
    return {name: label for label, name in sorted(found)}


def _annotations(tree: FileTree, folder: str, classes: list[str]) -> dict[str, int]:
    """Return the label of each file that `val_annotations.txt` names, in its order."""
    if folder + ANNOTATIONS not in tree.sizes:
        return {}
    index = {name: label for label, name in enumerate(classes)}
    labels = {}
    for number, line in enumerate(_lines(tree, folder + ANNOTATIONS), start=1):
        file, _, rest = line.partition("\t")
        class_name = rest.split("\t")[0]
        if class_name not in index:
            raise UserError(
                f"{tree.label}/{folder}{ANNOTATIONS} line {number} names no known class: fetch it again"
            )
        labels[file] = index[class_name]
    return labels


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
    # Editors on Windows put a byte-order mark first, which would belong to the first class.
    text = tree.read(name).decode("utf-8-sig", "replace")
    return [line.strip() for line in text.splitlines() if line.strip()]
