"""FFCV's part of reading images of any size: decode, cut out a given box, resize. Imports FFCV.

FFCV's own random crop draws from numpy's global generator in each of its threads, so that no epoch could
be had again. Here the boxes come with the samples' metadata, and nothing is drawn.
"""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
from ffcv.fields.rgb_image import SimpleRGBImageDecoder
from ffcv.libffcv import imdecode, resize_crop
from ffcv.pipeline.allocation_query import AllocationQuery
from ffcv.pipeline.compiler import Compiler

BOX = ("top", "left", "rows", "columns")
"""What the metadata of a sample holds beside FFCV's own."""


class BoxDecoder(SimpleRGBImageDecoder):  # type: ignore[misc]
    """Decodes JPEG samples to uint8 (side, side, 3), each out of its own box.

    Args:
        side: of the decoded images, in pixels.
    """

    def __init__(self, side: int) -> None:
        super().__init__()
        self._shape = (side, side, 3)

    def declare_state_and_memory(self, previous_state: Any) -> tuple[Any, AllocationQuery]:
        """Ask for the decoded images' memory alone; whole images would take that of the largest each."""
        pixel = np.dtype("<u1")
        state = replace(previous_state, jit_mode=True, shape=self._shape, dtype=pixel)
        return state, AllocationQuery(self._shape, pixel)

    def generate_code(self) -> Callable[..., Any]:
        """Return the function that FFCV compiles."""
        read = self.memory_read
        samples = Compiler.get_iterator()
        decode_jpeg, resize_box = Compiler.compile(imdecode), Compiler.compile(resize_crop)

        def decode(batch_indices: Any, destination: Any, metadata: Any, storage_state: Any) -> Any:
            for place in samples(len(batch_indices)):
                field = metadata[batch_indices[place]]
                height, width = np.int64(field["height"]), np.int64(field["width"])
                whole = np.empty((height, width, 3), np.uint8)
                data = read(field["data_ptr"], storage_state)
                decode_jpeg(data, whole, height, width, height, width, 0, 0, 1, 1, False, False)
                top, left = np.int64(field["top"]), np.int64(field["left"])
                bottom, right = top + np.int64(field["rows"]), left + np.int64(field["columns"])
                resize_box(whole, top, bottom, left, right, destination[place])
            return destination[: len(batch_indices)]

        decode.is_parallel = True  # type: ignore[attr-defined]
        return decode


def with_boxes(metadata: np.ndarray, image: str) -> np.ndarray:
    """Return a copy of a file's metadata that has room for a box in each sample.

    Args:
        metadata: FFCV's, or one that was returned from here (N,).
        image: name of the images' field in it.
    """
    field = metadata.dtype[image]
    names = [name for name in field.names or () if name not in BOX]
    room = np.dtype([*((name, field[name]) for name in names), *((name, "<u2") for name in BOX)], align=True)
    parts = [(name, room if name == image else metadata.dtype[name]) for name in metadata.dtype.names or ()]
    copy = np.zeros(len(metadata), np.dtype(parts, align=True))
    for name in metadata.dtype.names or ():
        if name != image:
            copy[name] = metadata[name]
    for name in names:
        copy[image][name] = metadata[image][name]
    return copy
