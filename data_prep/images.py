"""From an encoded file to what is stored: pixels of one size, or a JPEG in the image's own size."""

from __future__ import annotations

import io
from dataclasses import dataclass
from typing import TypeAlias, cast

import numpy as np
from numpy.typing import NDArray
from PIL import Image, UnidentifiedImageError

from fastpeer.data_prep.options import MAX_PIXELS
from fastpeer.errors import UserError, one_line

Pixels: TypeAlias = NDArray[np.uint8]
"""One image, height × width × 3, uint8."""

FORMATS = ("BMP", "GIF", "JPEG", "JPEG2000", "PNG", "PPM", "TGA", "TIFF", "WEBP")
"""Pillow knows more, such as EPS, for which it runs a program."""
MORE_THAN_8_BITS = ("I", "F")
JPEG_START = b"\xff\xd8"
LONGEST_JPEG_SIDE = 65500
"""What libjpeg encodes at most."""


@dataclass(frozen=True)
class PixelForm:
    """Images kept as pixels, all of one size.

    Attributes:
        height, width: in pixels.
        resize: bring other images to this size; otherwise they are an error.
        size_from: name of the image that set the size, for messages.
    """

    height: int
    width: int
    resize: bool
    size_from: str = ""

    def stored(self, data: bytes, name: str) -> Pixels:
        """Decode an image file to RGB pixels of this size.

        Raises:
            UserError: see `decode` and `fit`.
        """
        return self.fit(decode(data, name), name)

    def fit(self, image: Image.Image, name: str) -> Pixels:
        """Return RGB pixels of this size: shorter side resized (bilinear), then the centre cropped.

        Raises:
            UserError: the image has another size and `resize` is off.
        """
        if image.size != (self.width, self.height):
            if not self.resize:
                raise UserError(
                    f"{name} has {image.width}x{image.height} pixels but {self.size_from} has "
                    f"{self.width}x{self.height}: pass --size to bring all to one size"
                )
            image = resize_and_crop(image, self.width)
        return np.asarray(image)


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
class JpegForm:
    """Images kept as JPEG, each in its own size; a file that is one already stays as it is, byte for byte.

    Attributes:
        quality: of those that have to be encoded, 1 to 100.
        max_side: the longer side of larger images is scaled down to it; None: no limit.
    """

    quality: int
    max_side: int | None

    def stored(self, data: bytes, name: str) -> Jpeg:
        """Return the file itself where it is a baseline JPEG within the limit, else a JPEG made from it.

        Grey and RGB files are taken as they are: what reads them makes three channels of grey. EXIF
        rotations are not applied, as everywhere.

        Raises:
            UserError: see `decode`; or the image is too large for a JPEG.
        """
        image = decode(data, name)
        fits = self.max_side is None or max(image.size) <= self.max_side
        if fits and _is_baseline(data) and _ffcv_reads(data, image):
            return Jpeg(data, image.height, image.width)
        if not fits:
            image = _scaled_down(image, self.max_side or 0)
        return self._encode(image, name)

    def _encode(self, image: Image.Image, name: str) -> Jpeg:
        if max(image.size) > LONGEST_JPEG_SIDE:
            raise UserError(
                f"{name} has {image.width}x{image.height} pixels, too many for a JPEG: pass --max-side"
            )
        encoded = io.BytesIO()
        # Neither the comments nor anything else of the file but its pixels.
        image.save(encoded, "JPEG", quality=self.quality, comment=b"")
        return Jpeg(encoded.getvalue(), image.height, image.width)


Form: TypeAlias = PixelForm | JpegForm
"""How a data set's images are kept; `stored(data, name)` makes of an image file what is to be written."""


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
        image = Image.open(io.BytesIO(data), formats=FORMATS)
        if image.width * image.height > MAX_PIXELS:
            raise UserError(
                f"{name} declares {image.width}x{image.height} pixels, more than {MAX_PIXELS:,}:"
                " scale it down"
            )
        if image.mode.split(";")[0] in MORE_THAN_8_BITS:
            raise UserError(f"{name} has more than 8 bits a channel: convert it to 8 bits")
        return image.convert("RGB")
    except UserError:
        raise
    except UnidentifiedImageError as error:
        raise UserError(f"{name} is not an image that can be read: remove or replace it") from error
    except Exception as error:  # decoders of broken files raise nearly anything
        raise UserError(f"{name} is broken ({one_line(error)}): remove or replace it") from error


def is_transparent(data: bytes) -> bool:
    """Tell whether any pixel of an image file, which has been decoded already, is not opaque."""
    if data.startswith(JPEG_START):
        return False
    with Image.open(io.BytesIO(data), formats=FORMATS) as image:
        if "A" not in image.getbands() and "transparency" not in image.info:
            return False
        lowest, _ = image.convert("RGBA").getchannel("A").getextrema()
        return int(cast("int", lowest)) < 255


def _is_baseline(data: bytes) -> bool:
    # MPO, several pictures in one file, is a format of its own to Pillow.
    with Image.open(io.BytesIO(data), formats=FORMATS) as image:
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
