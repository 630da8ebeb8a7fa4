"""Small .beton files, and changes to them that a stranger might make."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from fastpeer.data.beton_file import ALLOCATION, FIELD, HEADER, IMAGE, INTEGER, JPEG, RAW, ROWS
from tests.data_prep.prep_files import encode, pixels

ROW = np.dtype([("image", ROWS[IMAGE]), ("label", ROWS[INTEGER])], align=True)
PAGE = 4096
"""FFCV's own are larger; what reads does not mind."""


@dataclass
class Beton:
    """The parts of a file, each of which may be changed before they are put together."""

    header: np.ndarray
    fields: np.ndarray
    rows: np.ndarray
    payload: bytearray
    table: np.ndarray

    def tobytes(self) -> bytes:
        """Return the file."""
        parts = (self.header, self.fields, self.rows)
        start = b"".join(part.tobytes() for part in parts).ljust(PAGE, b"\0")
        return start + bytes(self.payload) + self.table.tobytes()


def beton(images: Sequence[bytes], sizes: Sequence[tuple[int, int]], mode: int) -> Beton:
    """Return a file of encoded images with their heights and widths; labels are 0, 1, 2 in turn."""
    count = len(images)
    header, fields = np.zeros(1, HEADER), np.zeros(2, FIELD)
    rows, table = np.zeros(count, ROW), np.zeros(count, ALLOCATION)
    for field, kind, name in zip(fields, (IMAGE, INTEGER), (b"image", b"label"), strict=True):
        field["kind"], field["name"][: len(name)] = kind, list(name)
    lengths = np.array([len(image) for image in images])
    starts = PAGE + np.cumsum(lengths) - lengths
    rows["image"]["mode"], rows["image"]["pointer"] = mode, starts
    rows["image"]["height"], rows["image"]["width"] = np.transpose(sizes)
    rows["label"] = np.arange(count) % 3
    table["sample"], table["pointer"], table["size"] = np.arange(count), starts, lengths
    header[["version", "fields", "page_size", "samples"]] = (2, 2, PAGE, count)
    header["allocations"] = PAGE + lengths.sum()
    return Beton(header, fields, rows, bytearray(b"".join(images)), table)


def raw_file(count: int = 6) -> Beton:
    """Images of 8×8 pixels."""
    return beton([pixels(seed).tobytes() for seed in range(count)], [(8, 8)] * count, RAW)


def jpeg_file(count: int = 6, side: int = 0) -> Beton:
    """JPEGs of many sizes, or of one."""
    sizes = [(side or 9 + seed, side or 20 - seed) for seed in range(count)]
    return beton([encode(pixels(seed, *size), "JPEG") for seed, size in enumerate(sizes)], sizes, JPEG)


def mutations(original: Beton, seed: int, count: int) -> Iterator[tuple[str, bytes]]:
    """Yield changed files and what was changed: a number, bytes anywhere, or the file's length."""
    random, whole = np.random.default_rng(seed), original.tobytes()
    for number in range(count):
        data = bytearray(whole)
        if number % 5 == 0:
            yield _resized(data, random)
        elif number % 5 == 1:
            yield _flipped(data, original, random)
        else:
            yield _renumbered(data, original, random)


def _renumbered(data: bytearray, original: Beton, random: np.random.Generator) -> tuple[str, bytes]:
    """Replace one of the file's numbers by one that is likely to be wrong in an interesting way."""
    part, start = _part(original, random)
    name = str(random.choice([name for name, _ in _numbers(part.dtype)]))
    kind, offset = dict(_numbers(part.dtype))[name]
    place = start + int(random.integers(len(part))) * part.dtype.itemsize + offset
    old = int(np.frombuffer(data, kind, 1, place)[0])
    other = int(np.frombuffer(data, kind, 1, start + offset)[0])
    top = 1 << 8 * kind.itemsize
    edges = (0, 1, 2, 7, 255, PAGE, len(data), top // 2, top - 1, old + 1, old - 1, 2 * old, other)
    new = edges[int(random.integers(len(edges)))] % top
    data[place : place + kind.itemsize] = new.to_bytes(kind.itemsize, "little")
    return f"{name} {old} -> {new}", bytes(data)


def _part(original: Beton, random: np.random.Generator) -> tuple[np.ndarray, int]:
    parts = (original.header, original.fields, original.rows, original.table)
    starts = (0, HEADER.itemsize, HEADER.itemsize + original.fields.nbytes, PAGE + len(original.payload))
    chosen = int(random.choice(4, p=(0.3, 0.1, 0.3, 0.3)))
    return parts[chosen], starts[chosen]


def _numbers(kind: np.dtype, start: int = 0) -> Iterator[tuple[str, tuple[np.dtype, int]]]:
    """Yield the numbers of a structured type, nested ones too, with their places."""
    for name, (own, offset, *_) in (kind.fields or {}).items():
        if own.names:
            yield from _numbers(own, start + offset)
        else:
            yield name, (own.base if own.subdtype else own, start + offset)


def _flipped(data: bytearray, original: Beton, random: np.random.Generator) -> tuple[str, bytes]:
    """Replace bytes: in the headers of JPEGs, or anywhere."""
    starts = original.table["pointer"]
    places = random.integers(0, len(data), 3)
    if random.random() < 0.5:
        places = int(random.choice(starts)) + random.integers(0, 200, 3)
    for place in places:
        data[place % len(data)] = int(random.integers(256))
    return f"bytes {places.tolist()}", bytes(data)


def _resized(data: bytearray, random: np.random.Generator) -> tuple[str, bytes]:
    if random.random() < 0.5:
        kept = int(random.integers(len(data)))
        return f"first {kept} bytes", bytes(data[:kept])
    more = random.bytes(int(random.integers(1, 100)))
    return f"{len(more)} bytes behind it", bytes(data) + more
