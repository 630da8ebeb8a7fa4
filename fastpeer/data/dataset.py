"""Prepared data sets: the folders that `fastpeer prep` writes."""

import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from fastpeer.errors import UserError, one_line
from fastpeer.files import file_sha256


@dataclass(frozen=True)
class PreparedDataset:
    """The description of a prepared data set, from its `dataset.json`.

    Attributes:
        folder: the data set's folder.
        name: the name it was prepared under, such as cifar10.
        classes: names of the classes, in label order.
        size: height and width of the images in pixels; (0, 0) for images of many sizes, until `seen_at`.
        splits: file name, number of images, bytes and SHA-256 of `train` and `test`.
        pixels: "official pixels", or why they are not those of the data set of that name; empty: unknown, or
            there are no official ones.
        encoding: raw; or jpeg, for images of many sizes that are decoded and cropped for each batch.
    """

    folder: Path
    name: str
    classes: tuple[str, ...]
    size: tuple[int, int]
    splits: Mapping[str, Mapping[str, Any]]
    encoding: str = "raw"
    pixels: str = ""

    def seen_at(self, side: int, flag: str = "--data.size") -> "PreparedDataset":
        """Return this data set with the size at which the networks see its images.

        Args:
            side: height and width to resize JPEGs to; 0 for images of one size.
            flag: the flag that sets the side, for messages.

        Raises:
            UserError: JPEGs need a side, or the images are stored at another size.
        """
        if self.encoding == "jpeg":
            if side == 0:
                raise UserError(
                    f"{self.folder} holds JPEGs of many sizes: set the size to resize to, such as {flag} 224"
                )
            return replace(self, size=(side, side))
        if side and self.size != (side, side):
            stored = f"{self.size[1]}x{self.size[0]}"
            raise UserError(
                f"{flag} must be the stored size {stored} for {self.folder}, got {side}x{side}: leave it out,"
                f" or prepare the images with --size {side}"
            )
        return self

    def beton(self, split: str) -> Path:
        """Return a split's .beton file after checking its size and checksum.

        Raises:
            UserError: the file is missing, or not the one that was prepared.
        """
        path = self.folder / str(self.splits[split]["file"])
        if not path.is_file():
            raise UserError(f"{path}: missing; run fastpeer prep --dataset {self.name} --force again")
        expected = self.splits[split]
        if path.stat().st_size != expected["bytes"] or file_sha256(path) != expected["sha256"]:
            raise UserError(
                f"{path}: damaged or not the file that fastpeer prep wrote (size or checksum differs from"
                f" dataset.json); run fastpeer prep --dataset {self.name} --force again"
            )
        return path


def open_dataset(folder: Path) -> PreparedDataset:
    """Read the description of the prepared data set in a folder.

    Raises:
        UserError: the folder holds no data set, or its description cannot be read.
    """
    path = folder / "dataset.json"
    if not path.is_file():
        default = folder.parent == Path("data") and folder.name in ("digits", "cifar10", "cifar100", "tiny")
        words = folder.name if default else f"NAME --out {folder}"
        place = folder if folder.is_absolute() else f"{folder} (in {Path.cwd()})"
        raise UserError(f"no prepared data set in {place}: make one with fastpeer prep --dataset {words}")
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
            encoding=_checked_encoding(content.get("encoding", "raw")),
            pixels=str(content.get("pixels", "")),
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


def _checked_encoding(encoding: str) -> str:
    if encoding not in ("raw", "jpeg"):
        raise ValueError(f"encoding must be raw or jpeg in this version of fastpeer, got {encoding!r}")
    return encoding
