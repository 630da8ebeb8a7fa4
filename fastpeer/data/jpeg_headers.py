"""The size that a JPEG's header declares, for all images of a file at once."""

import numpy as np

MAX_SEGMENTS = 1000
"""Segments before the frame's header; a colour profile takes up to 255, and few files have anything else."""
MARKER, START = 0xFF, 0xD8
FRAMES = (0xC0, 0xC1)
"""Markers of a baseline and an extended sequential frame; prep encodes others anew."""
SEGMENTS = (0xC4, 0xDB, 0xDD, *range(0xE0, 0xF0), 0xFE)
"""Markers of what may stand before it: tables of Huffman codes and quantisation, restarts, APPn, comments."""
_FRAME_BYTES = 10
"""Marker, length, bits, height, width and number of components."""


def jpeg_sizes(data: np.ndarray, starts: np.ndarray, ends: np.ndarray) -> np.ndarray:
    """Return height and width of JPEGs, from their headers: nothing is decoded.

    Args:
        data: a file's bytes, uint8.
        starts: the first byte of each JPEG (n,).
        ends: the byte behind each (n,).

    Returns:
        int64 (n, 2); zeros where there is no sequential JPEG of 8 bits with 1 or 3 components.
    """
    sizes = np.zeros((len(starts), 2), np.int64)
    pending = np.flatnonzero(ends - starts >= 2 + _FRAME_BYTES)
    places = starts[pending]
    is_jpeg = (data[places] == MARKER) & (data[places + 1] == START)
    pending, places = pending[is_jpeg], places[is_jpeg] + 2
    for _ in range(MAX_SEGMENTS):
        inside = places + _FRAME_BYTES <= ends[pending]
        pending, places = pending[inside], places[inside]
        if len(pending) == 0:
            break
        markers = np.where(data[places] == MARKER, data[places + 1], 0)
        frames = np.isin(markers, FRAMES)
        sizes[pending[frames]] = _frame_sizes(data, places[frames])
        # A marker may be preceded by any number of 0xFF.
        steps = np.where(markers == MARKER, 1, 2 + _number(data, places + 2))
        others = (np.isin(markers, SEGMENTS) & (steps >= 4)) | (markers == MARKER)
        pending, places = pending[others], (places + steps)[others]
    return sizes


def _frame_sizes(data: np.ndarray, places: np.ndarray) -> np.ndarray:
    sizes = np.stack([_number(data, places + 5), _number(data, places + 7)], axis=1)
    readable = (data[places + 4] == 8) & np.isin(data[places + 9], (1, 3))
    return np.where(readable[:, None], sizes, 0)


def _number(data: np.ndarray, places: np.ndarray) -> np.ndarray:
    """Return two bytes at each place as a number, the high one first."""
    number: np.ndarray = data[places].astype(np.int64) << 8 | data[places + 1]
    return number
