"""Images that keep their own sizes, as JPEG: a file that is one already stays as it is, byte for byte."""

from __future__ import annotations

import io
from dataclasses import dataclass

import numpy as np
from PIL import Image

from fastpeer.data_prep.image import decode
from fastpeer.data_prep.source import EncodedSplit, Source
from fastpeer.data_prep.tree import FileTree
from fastpeer.errors import UserError

LONGEST_SIDE = 65500
"""What libjpeg encodes at most."""


@dataclass(frozen=True)
class JpegForm:
    """How images are kept.

    Attributes:
        quality: of those that have to be encoded, 1 to 100.
        max_side: the longer side of larger images is scaled down to it; None: no limit.
    """

    quality: int
    max_side: int | None


@dataclass(frozen=True)
class Jpeg:
    """One encoded image: its bytes, and its size in pixels."""

    data: bytes
    height: int
    width: int

    def tobytes(self) -> bytes:
        """Return what is stored, as an array does."""
        return self.data


@dataclass(frozen=True)
class JpegSplit:
    """Image files of a tree, made JPEG one by one when they are asked for."""

    tree: FileTree
    names: list[str]
    labels: list[int]
    target: JpegForm

    def __getitem__(self, index: int) -> tuple[Jpeg, int]:
        data = self.tree.read(self.names[index])
        return as_jpeg(data, self.name_of(index), self.target), self.labels[index]

    def name_of(self, index: int) -> str:
        """Return the file's name below the folder or archive."""
        return f"{self.tree.label}/{self.names[index]}"

    @property
    def sizes(self) -> list[int]:
        """Bytes of each file as it is."""
        return [self.tree.sizes[name] for name in self.names]


def kept_as_jpeg(source: Source, form: JpegForm) -> Source:
    """Return the same data set with its files kept as JPEG."""

    def kept(split: object) -> JpegSplit:
        # `PrepOptions.check` admits such sources alone.
        assert isinstance(split, EncodedSplit)
        return JpegSplit(split.tree, split.names, split.labels, form)

    return Source(source.classes, kept(source.train), kept(source.test), form, source.class_names)


def as_jpeg(data: bytes, name: str, form: JpegForm) -> Jpeg:
    """Return the file itself where it is a baseline JPEG within the limit, else one that is encoded from it.

    Grey and RGB files are taken as they are: what reads them makes three channels of grey. EXIF rotations
    are not applied, as everywhere.

    Raises:
        UserError: see `decode`; or the image is too large for a JPEG.
    """
    image = decode(data, name)
    fits = form.max_side is None or max(image.size) <= form.max_side
    if fits and _is_baseline(data) and _ffcv_reads(data, image):
        return Jpeg(data, image.height, image.width)
    if not fits:
        image = _scaled_down(image, form.max_side or 0)
    if max(image.size) > LONGEST_SIDE:
        raise UserError(
            f"{name} has {image.width}x{image.height} pixels, too many for a JPEG: pass --max-side"
        )
    encoded = io.BytesIO()
    # Neither the comments nor anything else of the file but its pixels.
    image.save(encoded, "JPEG", quality=form.quality, comment=b"")
    return Jpeg(encoded.getvalue(), image.height, image.width)


def _is_baseline(data: bytes) -> bool:
    # MPO, several pictures in one file, is a format of its own to Pillow.
    with Image.open(io.BytesIO(data)) as image:
        return image.format == "JPEG" and image.mode in ("L", "RGB") and "progressive" not in image.info


def _ffcv_reads(data: bytes, image: Image.Image) -> bool:
    """Tell whether FFCV decodes a file without complaint; while training, it would pass over any."""
    # Imported here: it takes seconds, which errors in the source need not wait for.
    from ffcv.libffcv import imdecode

    width, height = image.size
    pixels = np.empty((height, width, 3), np.uint8)
    encoded = np.frombuffer(data, np.uint8)
    code: int = imdecode(encoded, pixels, height, width, height, width, 0, 0, 1, 1, False, False)
    return code == 0


def _scaled_down(image: Image.Image, longest: int) -> Image.Image:
    """Scale the longer side to `longest` pixels, each the mean of those it covers, as FFCV does."""
    scale = longest / max(image.size)
    width, height = (max(1, int(length * scale)) for length in image.size)
    return image.resize((width, height), Image.Resampling.BOX)
