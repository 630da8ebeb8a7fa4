"""A prepared data set: the folder that `fastpeer prep` writes."""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fastpeer.errors import UserError, one_line

_BLOCK = 1 << 22


@dataclass(frozen=True)
class PreparedDataset:
    """What `dataset.json` says.

    Attributes:
        folder: where it lies.
        name: what it was prepared as, such as cifar10.
        classes: names in label order.
        size: height and width of the images.
        splits: file name, image count, bytes and SHA-256 of `train` and `test`.
    """

    folder: Path
    name: str
    classes: tuple[str, ...]
    size: tuple[int, int]
    splits: Mapping[str, Mapping[str, Any]]

    def beton(self, split: str) -> Path:
        """Return a split's file after checking that it is there and whole.

        Raises:
            UserError: it is missing, or not the file that was prepared.
        """
        path = self.folder / str(self.splits[split]["file"])
        if not path.is_file():
            raise UserError(f"{path}: missing; run fastpeer prep --dataset {self.name} --force again")
        expected = self.splits[split]
        if path.stat().st_size != expected["bytes"] or file_sha256(path) != expected["sha256"]:
            raise UserError(
                f"{path}: damaged or not the file that fastpeer prep wrote (size or checksum differ from"
                f" dataset.json); run fastpeer prep --dataset {self.name} --force again"
            )
        return path


def open_dataset(folder: Path) -> PreparedDataset:
    """Read a prepared data set's description.

    Raises:
        UserError: `folder` holds none, or one that cannot be read.
    """
    path = folder / "dataset.json"
    if not path.is_file():
        raise UserError(
            f"no prepared data set in {folder}: make one with fastpeer prep --dataset NAME --out {folder}"
        )
    try:
        content = json.loads(path.read_text("utf-8"))
        return PreparedDataset(
            folder=folder,
            name=content["name"],
            classes=tuple(content["classes"]),
            size=(content["size"][0], content["size"][1]),
            splits={
                name: {key: split[key] for key in ("file", "count", "bytes", "sha256")}
                for name, split in ((name, content["splits"][name]) for name in ("train", "test"))
            },
        )
    except (OSError, ValueError, KeyError, TypeError, AttributeError, IndexError) as error:
        raise UserError(
            f"{path}: not a data set's description ({type(error).__name__}: {one_line(error)});"
            " run fastpeer prep again"
        ) from None


def file_sha256(path: Path) -> str:
    """Hash a file; on the way it enters the operating system's cache, from which it is read again soon."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(_BLOCK):
            digest.update(block)
    return digest.hexdigest()
