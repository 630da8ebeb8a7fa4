"""The official data sets: how they are recognised, and whether a source has their very pixels."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from types import MappingProxyType

from fastpeer.data_prep.archive import FileTree
from fastpeer.data_prep.download import OFFICIAL
from fastpeer.data_prep.images import PixelForm
from fastpeer.data_prep.sources.source import FileSplit, Source

OFFICIAL_PIXELS = "official pixels"
OTHER_PIXELS = "not the official pixels"
UNKNOWN_PIXELS = "not known to be the official pixels"

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
        folders = tree.folders_with(marks[0])
        if any(all(folder + mark in tree.sizes for mark in marks) for folder in folders):
            return dataset
    return None


@dataclass(frozen=True)
class OfficialSet:
    """What an official data set holds.

    Attributes:
        classes: their number.
        side: height and width of its images in pixels.
        train_per_class, test_images: numbers of images.
        md5: of the files that hold the images, by name; empty where the archive's checksum has to do.
        class_pattern: of the names of all classes.
    """

    classes: int
    side: int
    train_per_class: int
    test_images: int
    md5: Mapping[str, str] = field(default_factory=dict)
    class_pattern: str = ".+"


OFFICIAL_SETS: Mapping[str, OfficialSet] = MappingProxyType(
    {
        # The files' checksums are those that torchvision checks.
        "cifar10": OfficialSet(
            10,
            32,
            5000,
            10_000,
            {
                "data_batch_1": "c99cafc152244af753f735de768cd75f",
                "data_batch_2": "d4bba439e000b95fd0a9bffe97cbabec",
                "data_batch_3": "54ebc095f3ab1f0389bbae665268c751",
                "data_batch_4": "634d18415352ddfa80567beed471001a",
                "data_batch_5": "482c414d41f54cd18b22e5b47cb7c3cb",
                "test_batch": "40351d587109b95175f43aff81a1287e",
            },
        ),
        "cifar100": OfficialSet(
            100,
            32,
            500,
            10_000,
            {"train": "16019d7e3df5f24257cddd939b257f8d", "test": "f0ef6b0ae62326f3e7ffdfab6717acfc"},
        ),
        "tiny": OfficialSet(200, 64, 500, 10_000, class_pattern=r"n\d{8}"),
    }
)


def pixels_of(
    dataset: str, tree: FileTree, source: Source, official: Mapping[str, OfficialSet] = OFFICIAL_SETS
) -> str:
    """Tell whether a source has the pixels of the official data set whose name it bears.

    Returns:
        "official pixels", "not the official pixels: WHY" or "not known to be the official pixels: WHY"; empty
        for a data set that is nobody's official one.
    """
    expected = official.get(dataset)
    if expected is None:
        return ""
    if wrong := next(_departures(expected, source), None):
        return f"{OTHER_PIXELS}: {wrong}"
    doubt = _doubt(dataset, tree, source, expected)
    return f"{UNKNOWN_PIXELS}: {doubt}" if doubt else OFFICIAL_PIXELS


def _departures(expected: OfficialSet, source: Source) -> Iterator[str]:
    """Yield what the official data set has otherwise."""
    if len(source.classes) != expected.classes:
        yield f"{len(source.classes)} classes, official are {expected.classes}"
    if odd := [name for name in source.classes if not re.fullmatch(expected.class_pattern, name)]:
        yield f"no official class is called {odd[0]}"
    form = source.form
    if isinstance(form, PixelForm) and (form.height, form.width) != (expected.side, expected.side):
        yield f"images of {form.width}x{form.height}, official are {expected.side}x{expected.side}"
    if not isinstance(form, PixelForm) and form.max_side is not None and form.max_side < expected.side:
        yield f"images scaled down to {form.max_side} pixels"
    if odd_counts := set(_per_class(source)) - {expected.train_per_class}:
        yield f"a class has {min(odd_counts)} training images, official are {expected.train_per_class}"
    if len(source.test.labels) != expected.test_images:
        yield f"{len(source.test.labels)} test images, official are {expected.test_images}"
    if expected.md5 and isinstance(source.train, FileSplit) and _has_jpeg(source.train):
        yield "JPEG files, which the official data set has not"


def _doubt(dataset: str, tree: FileTree, source: Source, expected: OfficialSet) -> str:
    """Return what keeps a source of the official form from being the official files; empty: nothing."""
    if expected.md5:
        differing = [name for name, md5 in expected.md5.items() if source.md5.get(name) != md5]
        if not source.md5:
            return "image files in place of the official archive"
        return f"{differing[0]} differs from the official file" if differing else ""
    if tree.kind != "archive":
        return "a folder, where only the archive has a known checksum"
    return (
        "" if f"md5:{_md5_of(tree)}" == OFFICIAL[dataset].known_hash else "another archive than the official"
    )


def _per_class(source: Source) -> list[int]:
    counts = [0] * len(source.classes)
    for label in source.train.labels:
        counts[label] += 1
    return counts


def _has_jpeg(split: FileSplit) -> bool:
    return any(name.lower().endswith((".jpg", ".jpeg")) for name in split.names)


def _md5_of(tree: FileTree) -> str:
    digest = hashlib.md5(usedforsecurity=False)
    with tree.path.open("rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()
