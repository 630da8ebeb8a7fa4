"""Decodes JPEGs with FFCV's C functions, called without FFCV's Python code and what numba compiles for it."""

import ctypes
from importlib.util import find_spec
from pathlib import Path

import numpy as np

from fastpeer.data.beton_file import JPEG, Samples
from fastpeer.errors import UserError, one_line

DECODE, RESIZE = 13, 11
"""Arguments of FFCV's functions `imdecode` and `resize`."""


class JpegDecoder:
    """Decodes samples of a .beton file to images of one size; several threads may call it at once.

    Args:
        library: from `ffcv_library`.
        path: the file, for messages.
        samples: of the file.
        side: height and width that a crop of each image is resized to; 0: the images are of one size, which
            they keep.
    """

    def __init__(self, library: ctypes.CDLL, path: Path, samples: Samples, side: int = 0) -> None:
        self._path, self._samples, self._side = path, samples, side
        images = samples.images
        starts = images["pointer"].astype(np.int64)
        # Address, length, height and width of each image.
        self._stored = np.stack(
            [samples.data.ctypes.data + starts, samples.lengths, images["height"], images["width"]], axis=1
        )
        self._raw = np.empty(0) if samples.all_jpeg else images["mode"] != JPEG
        # Imports llvmlite, which is there wherever FFCV's library is.
        from fastpeer.data.row_calls import RowCaller

        decode, resize = (ctypes.cast(getattr(library, name), ctypes.c_void_p).value or 0
                          for name in ("imdecode", "resize"))  # fmt: skip
        calls = [(decode, DECODE), (resize, RESIZE)]
        self._decode_one = RowCaller(calls[0])
        self._decode_each = RowCaller(*calls) if side else self._decode_one

    def __call__(self, chosen: np.ndarray, images: np.ndarray, boxes: np.ndarray | None = None) -> None:
        """Decode some samples.

        Args:
            chosen: their indices, int64 (n,).
            images: where they go, uint8 (n, height, width, 3), contiguous.
            boxes: top, left, height and width of the crop of each, int64 (n, 4), if there is a side.

        Raises:
            UserError: a JPEG is damaged, so that not all of its pixels are known.
        """
        addresses = images.ctypes.data + np.arange(len(chosen)) * images.strides[0]
        if len(self._raw):
            chosen, addresses = self._copied(chosen, images, addresses)
        if boxes is None:
            results = self._decode_each(self._rows(chosen, addresses, DECODE))
        else:
            results = self._cropped(chosen, addresses, boxes)
        # libjpeg also warns of what it could repair.
        for sample in chosen[results != 0]:
            self._refuse_unknown_pixels(sample)

    def _copied(
        self, chosen: np.ndarray, images: np.ndarray, addresses: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray]:
        """Copy images that are stored as their pixels; return the others, and where they go."""
        raw = self._raw[chosen]
        for place in np.flatnonzero(raw):
            sample = chosen[place]
            start = int(self._samples.images["pointer"][sample])
            pixels = self._samples.data[start : start + self._samples.lengths[sample]]
            images[place] = pixels.reshape(images.shape[1:])
        return chosen[~raw], addresses[~raw]

    def _cropped(self, chosen: np.ndarray, addresses: np.ndarray, boxes: np.ndarray) -> np.ndarray:
        # As large as the largest image: they are decoded and resized one after another.
        whole = np.empty(3 * int(self._stored[chosen, 2:].prod(axis=1).max()), np.uint8)
        rows = self._rows(chosen, whole.ctypes.data, DECODE + RESIZE)
        # No resizer of FFCV's own; image, height, width; rows and columns from and to; crop, height, width.
        resizing = rows[:, DECODE:]
        resizing[:, 1], resizing[:, 2:4] = whole.ctypes.data, rows[:, 2:4]
        resizing[:, 4:8:2] = boxes[:, :2]
        np.add(boxes[:, :2], boxes[:, 2:], out=resizing[:, 5:8:2])
        resizing[:, 8], resizing[:, 9:] = addresses, self._side
        return self._decode_each(rows)

    def _rows(self, chosen: np.ndarray, addresses: np.ndarray | int, width: int) -> np.ndarray:
        """Return rows that begin with `imdecode`'s arguments: each JPEG and where it goes."""
        rows = np.zeros((len(chosen), width), np.int64)
        rows[:, :4] = self._stored[chosen]
        rows[:, 4] = addresses
        # The same size again, no offset, a scale of 1/1, no crop, no flip.
        rows[:, 5:7] = rows[:, 2:4]
        rows[:, 9:11] = 1
        return rows

    def _refuse_unknown_pixels(self, sample: int) -> None:
        """Decode over two colours: a pixel that keeps them was not decoded, and could have been anything."""
        two = np.empty((2, 3 * int(self._stored[sample, 2:].prod())), np.uint8)
        two[0], two[1] = 0, 255
        addresses = two.ctypes.data + np.arange(2) * two.strides[0]
        self._decode_one(self._rows(np.full(2, sample), addresses, DECODE))
        if (two[0] != two[1]).any():
            raise UserError(
                f"{self._path}: image {sample} is a damaged JPEG, which cannot be decoded: prepare it again"
            )


def ffcv_is_missing(path: Path, error: Exception, instead: str) -> UserError:
    """Return what to say of a file that only FFCV reads, and what may be done instead."""
    return UserError(f"{path}: FFCV cannot be imported ({one_line(error)}): pip install ffcv, or {instead}")


def ffcv_library(path: Path) -> ctypes.CDLL:
    """Return FFCV's C library, without importing FFCV.

    Args:
        path: the file that needs it, for the message.

    Raises:
        UserError: FFCV is not installed, or its library cannot be loaded.
    """
    try:
        return ctypes.CDLL(str(_library_file()))
    except (ImportError, OSError) as error:
        raise ffcv_is_missing(path, error, "prepare the images without --jpeg") from None


def _library_file() -> Path:
    spec = find_spec("ffcv")
    if spec is None:
        raise ImportError("No module named 'ffcv'")
    for folder in spec.submodule_search_locations or ():
        for path in Path(folder).glob("_libffcv*.so"):
            return path
    raise ImportError("its library _libffcv is missing")
