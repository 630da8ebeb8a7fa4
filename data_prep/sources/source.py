"""What a data set offers to the writer: two splits of images with labels."""

from __future__ import annotations

import hashlib
import mmap
from bisect import bisect_right
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import accumulate
from typing import Protocol, TypeAlias

from PIL import Image

from fastpeer.data_prep.archive import FileTree
from fastpeer.data_prep.images import Form, Jpeg, JpegForm, PixelForm, Pixels, decode, is_transparent
from fastpeer.errors import UserError

LabelledFiles: TypeAlias = tuple[list[str], list[int]]
"""Names of files in a tree, in order, and the label of each."""


@dataclass(frozen=True)
class DrawnPart:
    """A part of each class's images that becomes the test split.

    Attributes:
        fraction: the part, between 0 and 1.
        seed: of the choice.
    """

    fraction: float
    seed: int

    def of(self, names: Sequence[str]) -> set[str]:
        """Choose from the names of one class's images: at least one, and not all, where there are several."""
        count = min(max(1, round(self.fraction * len(names))), len(names) - 1)
        # By hash, not by a random generator, whose numbers may change with its library's version.
        ranked = sorted(names, key=lambda name: hashlib.sha256(f"{self.seed} {name}".encode()).digest())
        return set(ranked[:count])


class Split(Protocol):
    """The images of one split; processes forked from the one that made it can read it too."""

    @property
    def labels(self) -> Sequence[int]:
        """One class index for each sample."""

    @property
    def form(self) -> Form:
        """How the images are kept."""

    def __getitem__(self, index: int) -> tuple[Pixels | Jpeg, int]:
        """Return a sample's image as it is to be stored, and its label."""

    @property
    def transparent(self) -> int:
        """Number of images, of those read so far, that are not opaque."""

    def name_of(self, index: int) -> str:
        """Return a sample's name for messages."""


@dataclass(frozen=True)
class Source:
    """A data set ready to be written.

    Attributes:
        classes: class names; a label is an index into them.
        train, test: the two splits, of the same form.
        class_names: readable names where `classes` are codes.
        notes: what of the source is left out or taken otherwise than its names tell, a line each.
        draw: how the test split was drawn, where the source has none.
        md5: of the files whose checksums are known where they are official, by name.
        pixels: whether these are the official pixels, see `official.pixels_of`.
    """

    classes: list[str]
    train: Split
    test: Split
    class_names: list[str] = field(default_factory=list)
    notes: tuple[str, ...] = ()
    draw: DrawnPart | None = None
    md5: Mapping[str, str] = field(default_factory=dict)
    pixels: str = ""

    @property
    def splits(self) -> dict[str, Split]:
        """The splits by name."""
        return {"train": self.train, "test": self.test}

    @property
    def form(self) -> Form:
        """Height and width of every image, or how images of many sizes are kept."""
        return self.train.form

    def require_classes(self) -> None:
        """Raise UserError unless there are two classes to tell apart."""
        if len(self.classes) < 2:
            raise UserError(
                f"the training images must be of at least 2 classes, got {', '.join(self.classes)} only:"
                " add a class folder"
            )

    def written_notes(self) -> list[str]:
        """Return the notes with what is known only once all images were read."""
        transparent = sum(split.transparent for split in self.splits.values())
        dropped = f"transparent images, whose colours are kept and whose alpha is dropped: {transparent}"
        return [*self.notes, *_without_test_images(self), *([dropped] if transparent else [])]

    def kept_as_jpeg(self, form: JpegForm) -> Source:
        """Return the same data set with its files kept as JPEG."""
        return replace(self, train=_with_form(self.train, form), test=_with_form(self.test, form))


@dataclass(frozen=True)
class FileSplit:
    """Image files of a tree, each read when it is asked for."""

    tree: FileTree
    names: list[str]
    labels: list[int]
    form: Form
    # A byte for each image, not 0 for a transparent one, in memory shared with forked workers.
    _alpha: mmap.mmap = field(init=False, compare=False, repr=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "_alpha", mmap.mmap(-1, max(1, len(self.names))))

    def __getitem__(self, index: int) -> tuple[Pixels | Jpeg, int]:
        data = self.tree.read(self.names[index])
        stored = self.form.stored(data, self.name_of(index))
        self._alpha[index] = is_transparent(data)
        return stored, self.labels[index]

    @property
    def transparent(self) -> int:
        """Number of images, of those read so far, that are not opaque."""
        return sum(self._alpha[:])

    def name_of(self, index: int) -> str:
        """Return the file's name below the folder or archive."""
        return f"{self.tree.label}/{self.names[index]}"

    @property
    def file_sizes(self) -> list[int]:
        """Bytes of each file as it is in the source."""
        return [self.tree.sizes[name] for name in self.names]


class ArraySplit:
    """Images that lie in memory.

    Args:
        batches: pairs of a name and an array of images, N × height × width × 3, uint8.
        labels: one for each image of all batches.
        form: size to bring them to.
    """

    def __init__(self, batches: Sequence[tuple[str, Pixels]], labels: list[int], form: PixelForm) -> None:
        self.batches = batches
        self.labels = labels
        self.form = form
        self.transparent = 0
        self._ends = list(accumulate(len(images) for _, images in batches))

    def __getitem__(self, index: int) -> tuple[Pixels, int]:
        batch, row = self._place(index)
        image = Image.fromarray(self.batches[batch][1][row])
        return self.form.fit(image, self.name_of(index)), self.labels[index]

    def name_of(self, index: int) -> str:
        """Return the batch's name and the image's number in it."""
        batch, row = self._place(index)
        return f"image {row} of {self.batches[batch][0]}"

    def _place(self, index: int) -> tuple[int, int]:
        batch = bisect_right(self._ends, index)
        return batch, index - (self._ends[batch - 1] if batch else 0)


def source_of_files(
    tree: FileTree,
    classes: list[str],
    train: LabelledFiles,
    test: LabelledFiles,
    size: int | None,
    class_names: Sequence[str] = (),
) -> Source:
    """Return the source whose images are files: of `size` pixels squared, or else of the first one's size.

    Raises:
        UserError: no size is given and the first image cannot be decoded.
    """
    form = _form_of(tree, train[0][0], size)
    return Source(classes, FileSplit(tree, *train, form), FileSplit(tree, *test, form), list(class_names))


def shortened(names: Sequence[str], longest: int = 5) -> str:
    """Join names; of many, only the first ones."""
    rest = len(names) - longest
    return ", ".join(names[:longest]) + (f" and {rest} more" if rest > 0 else "")


def _without_test_images(source: Source) -> list[str]:
    tested = set(source.test.labels)
    names = [name for label, name in enumerate(source.classes) if label not in tested]
    return [f"classes without test images: {shortened(names)}"] if names else []


def _form_of(tree: FileTree, name: str, size: int | None) -> PixelForm:
    if size is not None:
        return PixelForm(size, size, resize=True)
    shown = f"{tree.label}/{name}"
    image = decode(tree.read(name), shown)
    return PixelForm(image.height, image.width, resize=False, size_from=shown)


def _with_form(split: Split, form: Form) -> FileSplit:
    # `PrepOptions.check` admits --jpeg only for data sets whose images lie in files.
    assert isinstance(split, FileSplit)
    return replace(split, form=form)
