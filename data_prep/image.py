"""From an encoded file to the pixels that are stored."""

from __future__ import annotations

import io
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeAlias

import numpy as np
from numpy.typing import NDArray
from PIL import Image, UnidentifiedImageError

from fastpeer.errors import UserError, one_line

if TYPE_CHECKING:
    from fastpeer.data_prep.tree import FileTree

Pixels: TypeAlias = NDArray[np.uint8]
"""One image, height × width × 3, uint8."""

MORE_THAN_8_BITS = ("I", "F")


@dataclass(frozen=True)
class Target:
    """The size that every image of a data set has to have.

    Attributes:
        height, width: in pixels.
        resize: bring other images to this size; otherwise they are an error.
        model: name of the image that set the size, for messages.
    """

    height: int
    width: int
    resize: bool
    model: str = ""

    def fit(self, image: Image.Image, name: str) -> Pixels:
        """Return RGB pixels of this size: shorter side resized (bilinear), then the centre cropped.

        Raises:
            UserError: the image has another size and `resize` is off.
        """
        if image.size != (self.width, self.height):
            if not self.resize:
                raise UserError(
                    f"{name} has {image.width}x{image.height} pixels but {self.model} has "
                    f"{self.width}x{self.height}: pass --size to bring all to one size"
                )
            image = resize_and_crop(image, self.width)
        return np.asarray(image)


def resize_and_crop(image: Image.Image, side: int) -> Image.Image:
    """Resize the shorter side to `side` pixels and crop the centre square."""
    scale = side / min(image.size)
    width, height = (max(side, round(length * scale)) for length in image.size)
    image = image.resize((width, height), Image.Resampling.BILINEAR)
    left, top = (width - side) // 2, (height - side) // 2
    return image.crop((left, top, left + side, top + side))


def decode(data: bytes, name: str) -> Image.Image:
    """Decode an image file to RGB; alpha is dropped, an EXIF rotation is not applied.

    Raises:
        UserError: the file is empty, broken, cut off, no image, or has more than 8 bits a channel.
    """
    if not data:
        raise UserError(f"{name} is empty: remove or replace it")
    try:
        image = Image.open(io.BytesIO(data))
        if image.mode.split(";")[0] in MORE_THAN_8_BITS:
            raise UserError(f"{name} has more than 8 bits a channel: convert it to 8 bits")
        return image.convert("RGB")
    except UserError:
        raise
    except UnidentifiedImageError as error:
        raise UserError(f"{name} is not an image that can be read: remove or replace it") from error
    except Exception as error:  # decoders of broken files raise nearly anything
        raise UserError(f"{name} is broken ({one_line(error)}): remove or replace it") from error


def target_of(tree: FileTree, name: str, size: int | None) -> Target:
    """Return the target for encoded files: `size` squared, or else the size of the image `name`."""
    if size is not None:
        return Target(size, size, resize=True)
    shown = f"{tree.label}/{name}"
    image = decode(tree.read(name), shown)
    return Target(image.height, image.width, resize=False, model=shown)
