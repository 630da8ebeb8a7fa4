"""Prepared data sets: the folders that `fastpeer prep` writes."""

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from fastpeer.errors import UserError, brief, printable, shown
from fastpeer.files import file_sha256, read_text

LONGEST_NAME = 255
LONGEST_SIDE = 65535
"""Pixels of a side that a .beton file has room for."""
MOST = 1 << 62
"""Images, or bytes."""


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
        if (folder / "train").is_dir():
            # The images themselves, as fastpeer prep takes them.
            raise UserError(
                f"{folder} is not prepared: fastpeer prep --dataset folder --source {folder} --out data/NAME,"
                " then --data data/NAME"
            )
        default = folder.parent == Path("data") and folder.name in ("digits", "cifar10", "cifar100", "tiny")
        words = folder.name if default else f"NAME --out {folder}"
        place = folder if folder.is_absolute() else f"{folder} (in {Path.cwd()})"
        raise UserError(f"no prepared data set in {place}: make one with fastpeer prep --dataset {words}")
    try:
        return _described(folder, json.loads(read_text(path)))
    except RecursionError:
        reason = "nested too deeply"
    except (OSError, ValueError, KeyError, TypeError, AttributeError, IndexError) as error:
        reason = f"{type(error).__name__}: {brief(error)}"
    raise UserError(f"{path}: not a data set's description ({reason}); run fastpeer prep again")


def _described(folder: Path, content: Mapping[str, Any]) -> PreparedDataset:
    """Take from a description what is needed, each part checked: it may be a stranger's."""
    splits = {name: content["splits"][name] for name in ("train", "test")}
    classes = content["classes"]
    if not isinstance(classes, list) or not all(isinstance(name, str) for name in classes) or not classes:
        raise ValueError(f"classes must be a list of names, got {shown(classes)}")
    return PreparedDataset(
        folder=folder,
        name=_text("name", content["name"]),
        classes=tuple(classes),
        size=_stored_size(content),
        splits={name: _split(split) for name, split in splits.items()},
        encoding=_checked_encoding(content.get("encoding", "raw")),
        pixels=_text("pixels", content.get("pixels", "")),
    )


def _split(split: Mapping[str, Any]) -> dict[str, Any]:
    file, digest = _text("file", split["file"]), split["sha256"]
    # In the folder itself: not /etc/passwd, nor a file above.
    if file != Path(file).name or len(file) > LONGEST_NAME:
        raise ValueError(f"file must be the name of a file in the folder, got {shown(file)}")
    if not isinstance(digest, str) or not re.fullmatch(r"[0-9a-f]{64}", digest):
        raise ValueError(f"sha256 must be 64 hexadecimal digits, got {shown(digest)}")
    counts = {name: _whole(name, split[name], MOST) for name in ("count", "bytes")}
    return {"file": file, "sha256": digest, **counts}


def _text(name: str, value: object) -> str:
    if not isinstance(value, str) or printable(value) != value:
        raise ValueError(f"{name} must be a text without control characters, got {shown(value)}")
    return value


def _whole(name: str, value: object, most: int) -> int:
    if type(value) is not int or not 0 < value <= most:
        raise ValueError(f"{name} must be a whole number above 0, got {shown(value)}")
    return value


def _stored_size(content: Mapping[str, Any]) -> tuple[int, int]:
    if content.get("encoding") == "jpeg":
        return (0, 0)
    height, width = (_whole("size", side, LONGEST_SIDE) for side in content["size"])
    return (height, width)


def _checked_encoding(encoding: object) -> str:
    if encoding not in ("raw", "jpeg"):
        raise ValueError(f"encoding must be raw or jpeg in this version of fastpeer, got {shown(encoding)}")
    return str(encoding)
