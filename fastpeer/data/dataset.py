"""A prepared data set: the folder that `fastpeer prep` writes."""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
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
        size: height and width of the images; (0, 0) where they are of many, until `seen_at`.
        encoding: raw, or jpeg: images of many sizes, decoded and cut for each batch.
        splits: file name, image count, bytes and SHA-256 of `train` and `test`.
    """

    folder: Path
    name: str
    classes: tuple[str, ...]
    size: tuple[int, int]
    splits: Mapping[str, Mapping[str, Any]]
    encoding: str = "raw"

    def seen_at(self, side: int, flag: str = "--data.size") -> "PreparedDataset":
        """Return this data set with the size that the networks see it at.

        Args:
            side: height and width of images kept as JPEG; 0 for images of one size.
            flag: what sets it, for messages.

        Raises:
            UserError: a side is lacking, or the images are stored at another size.
        """
        if self.encoding == "jpeg":
            if side == 0:
                raise UserError(
                    f"{self.folder} holds JPEGs of many sizes: say at which to see them, {flag} 224"
                )
            return replace(self, size=(side, side))
        if side and self.size != (side, side):
            stored = f"{self.size[1]}x{self.size[0]}"
            raise UserError(
                f"{self.folder} holds images of {stored}, not {side}x{side}: leave {flag} out, or prepare it"
                f" with --size {side}"
            )
        return self

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
            size=_stored_size(content),
            splits={
                name: {key: split[key] for key in ("file", "count", "bytes", "sha256")}
                for name, split in ((name, content["splits"][name]) for name in ("train", "test"))
            },
            encoding=_one_of(content.get("encoding", "raw"), "raw", "jpeg"),
        )
    except (OSError, ValueError, KeyError, TypeError, AttributeError, IndexError) as error:
        raise UserError(
            f"{path}: not a data set's description ({type(error).__name__}: {one_line(error)});"
            " run fastpeer prep again"
        ) from None


def _stored_size(content: Mapping[str, Any]) -> tuple[int, int]:
    if content.get("encoding") == "jpeg":
        return (0, 0)
    height, width = content["size"]
    return (height, width)


def _one_of(value: str, *known: str) -> str:
    if value not in known:
        raise ValueError(f"encoding {value!r} is not known to this version of fastpeer")
    return value


def file_sha256(path: Path) -> str:
    """Hash a file; on the way it enters the operating system's cache, from which it is read again soon."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(_BLOCK):
            digest.update(block)
    return digest.hexdigest()
