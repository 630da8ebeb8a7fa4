"""How each image was classified under an attack: a file beside the results, by image and by class."""

import io
import zipfile
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path

import numpy as np

from fastpeer.errors import UserError
from fastpeer.files import write_atomically

LARGEST = 1 << 28
"""Bytes of all arrays in a file: those of a million images have a tenth."""


@dataclass(frozen=True)
class ClassAccuracy:
    """How many images of a class were classified correctly, of how many."""

    name: str
    correct: int
    images: int


@dataclass(frozen=True, eq=False)
class ByImage:
    """How a student classified N images under an attack.

    Attributes:
        index: int32 (N,): place of each image in the test split, ascending.
        label: int32 (N,): its class.
        correct: bool (N,): classified correctly under the attack.
        finite: bool (N,): all its logits are finite.
        fallen: int8 (N,): of AutoAttack, −1: correct after all attacks; 0: wrong without one; k: it fell to
            `attacks[k - 1]`. Of other attacks (0,).
        attacks: names of AutoAttack's attacks, in order; none for other attacks.
        classes: names of the classes.
    """

    index: np.ndarray
    label: np.ndarray
    correct: np.ndarray
    finite: np.ndarray
    fallen: np.ndarray
    attacks: tuple[str, ...]
    classes: tuple[str, ...]

    def by_class(self) -> list[ClassAccuracy]:
        """Return the accuracy on each class, in the data set's order."""
        images = np.bincount(self.label, minlength=len(self.classes)).tolist()
        correct = np.bincount(self.label[self.correct], minlength=len(self.classes)).tolist()
        return [ClassAccuracy(*facts) for facts in zip(self.classes, correct, images, strict=True)]

    def worst_class(self) -> ClassAccuracy:
        """Return the class with the lowest accuracy, of equal ones the first, of those with images."""
        present = [found for found in self.by_class() if found.images]
        return min(present, key=lambda found: found.correct / found.images)

    def content(self) -> bytes:
        """Return what `read_by_image` reads: a compressed .npz, the same bytes for the same verdicts."""
        stream = io.BytesIO()
        np.savez_compressed(
            stream, index=self.index, label=self.label, correct=self.correct, finite=self.finite,
            fallen=self.fallen, attacks=np.array(self.attacks, np.str_),
            classes=np.array(self.classes, np.str_),
        )  # fmt: skip
        return stream.getvalue()


def write_by_image(found: ByImage, folder: Path, name: str) -> tuple[str, str]:
    """Write verdicts into a folder, which is made if it is missing.

    Args:
        found: the verdicts.
        folder: for the file.
        name: what the file's name begins with; it ends with a part of the checksum, so that no other verdicts
            ever take the place of these.

    Returns:
        The file's name, and its SHA-256.

    Raises:
        UserError: it cannot be written.
    """
    content = found.content()
    checksum = sha256(content).hexdigest()
    file = folder / f"{name}-{checksum[:12]}.npz"
    try:
        folder.mkdir(exist_ok=True)
    except OSError as error:
        raise UserError(f"{folder}: cannot be written ({error.strerror})") from None
    write_atomically(file, content)
    return file.name, checksum


def read_by_image(file: Path, checksum: str) -> ByImage:
    """Read verdicts that `write_by_image` wrote; `checksum` is the one that it returned.

    Raises:
        UserError: the file is missing or damaged, or holds anything else.
    """
    try:
        content = file.read_bytes()
        if sha256(content).hexdigest() != checksum:
            raise UserError(f"{file} is damaged (its checksum differs): evaluate again")
        arrays = _arrays(content)
        attacks, classes = (tuple(arrays.pop(name).tolist()) for name in ("attacks", "classes"))
        found = ByImage(**arrays, attacks=attacks, classes=classes)
        _check(found)
    except OSError as error:
        raise UserError(f"{file}: cannot be read ({error.strerror}): evaluate again") from None
    except (ValueError, KeyError, TypeError, zipfile.BadZipFile):
        raise UserError(f"{file}: not verdicts of fastpeer eval: evaluate again") from None
    return found


def _arrays(content: bytes) -> dict[str, np.ndarray]:
    with zipfile.ZipFile(io.BytesIO(content)) as archive:
        if sum(member.file_size for member in archive.infolist()) > LARGEST:
            raise ValueError
    with np.load(io.BytesIO(content), allow_pickle=False) as file:
        return dict(file)


def _check(found: ByImage) -> None:
    """Raise ValueError unless all images have a verdict and a class with a name."""
    kinds = [
        (found.index, np.int32),
        (found.label, np.int32),
        (found.correct, np.bool_),
        (found.finite, np.bool_),
    ]
    images = (len(found.index),)
    if any(array.dtype != kind or array.shape != images for array, kind in kinds):
        raise ValueError
    known = (found.label >= 0) & (found.label < len(found.classes))
    if found.fallen.shape not in (images, (0,)) or not known.all():
        raise ValueError
