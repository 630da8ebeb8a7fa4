"""An FFCV decoder for JPEGs that crops a given box and resizes it. Importing this module imports FFCV.

FFCV's own random crop draws from numpy's global generator in each of its threads, so that no epoch can be
reproduced. Here the boxes come with the samples' metadata, and no random number is drawn.
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
"""Fields added to a sample's metadata: the box's corner, height and width, in pixels."""


class BoxDecoder(SimpleRGBImageDecoder):  # type: ignore[misc]
    """Decodes JPEG samples to uint8 (side, side, 3), each from its own box.

    Args:
        side: height and width of the decoded images, in pixels.
    """

    def __init__(self, side: int) -> None:
        super().__init__()
        self._shape = (side, side, 3)

    def declare_state_and_memory(self, previous_state: Any) -> tuple[Any, AllocationQuery]:
        """Request memory for the decoded crops only; full images would each need room for the largest."""
        pixel = np.dtype("<u1")
        state = replace(previous_state, jit_mode=True, shape=self._shape, dtype=pixel)
        return state, AllocationQuery(self._shape, pixel)

    def generate_code(self) -> Callable[..., Any]:
        """Return the decoding function, which FFCV compiles with numba."""
        read = self.memory_read
        samples = Compiler.get_iterator()
        decode_jpeg, resize_box = Compiler.compile(imdecode), Compiler.compile(resize_crop)

        def decode(batch_indices: Any, destination: Any, metadata: Any, storage_state: Any) -> Any:
            # FFCV's iterator: a parallel loop over the samples of the batch.
            for place in samples(len(batch_indices)):
                field = metadata[batch_indices[place]]
                height, width = np.int64(field["height"]), np.int64(field["width"])
                image = np.empty((height, width, 3), np.uint8)
                data = read(field["data_ptr"], storage_state)
                decode_jpeg(data, image, height, width, height, width, 0, 0, 1, 1, False, False)
                top, left = np.int64(field["top"]), np.int64(field["left"])
                bottom, right = top + np.int64(field["rows"]), left + np.int64(field["columns"])
                resize_box(image, top, bottom, left, right, destination[place])
            return destination[: len(batch_indices)]

        decode.is_parallel = True  # type: ignore[attr-defined]
        return decode


def with_boxes(metadata: np.ndarray, image: str) -> np.ndarray:
    """Return a copy of a file's metadata with fields for a box in each sample.

    Args:
        metadata: structured array (N,), from FFCV or from this function.
        image: name of the image field in it.
    """
    field = metadata.dtype[image]
    names = [name for name in field.names or () if name not in BOX]
    # Box fields of 16 bits, like FFCV's own height and width.
    room = np.dtype([*((name, field[name]) for name in names), *((name, "<u2") for name in BOX)], align=True)
    parts = [(name, room if name == image else metadata.dtype[name]) for name in metadata.dtype.names or ()]
    copy = np.zeros(len(metadata), np.dtype(parts, align=True))
    for name in metadata.dtype.names or ():
        if name != image:
            copy[name] = metadata[name]
    for name in names:
        copy[image][name] = metadata[image][name]
    return copy
