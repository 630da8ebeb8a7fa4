"""FFCV files: writing with guarded workers, and reading back. Only the writer process imports this."""

from __future__ import annotations

import hashlib
import mmap
import multiprocessing
import os
import signal
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
from ffcv.fields import IntField, RGBImageField
from ffcv.fields.rgb_image import IMAGE_MODES
from ffcv.reader import Reader
from ffcv.writer import DatasetWriter, tqdm, worker_job_indexed_dataset
from numpy.typing import NDArray

from fastpeer.data_prep.images import Jpeg, JpegForm, Pixels
from fastpeer.data_prep.sources.source import Split
from fastpeer.data_prep.writer.messages import Reports
from fastpeer.data_prep.writer.space import split_page_size
from fastpeer.errors import UserError

Checksums: TypeAlias = NDArray[np.uint32]
"""CRC-32 of what is stored of each image, N: its pixels, or its JPEG."""

CHUNK = 100


def watch_workers(reports: Reports) -> None:
    """From now on, report the death of a worker as an error: FFCV would wait for it for ever."""

    def report_failures(number: int, frame: object) -> None:
        for status in _ended_children():
            if status != 0:
                reports.fail(UserError(_failure(status)))

    # FFCV's workers have to inherit this process's memory, which holds the source.
    multiprocessing.set_start_method("fork", force=True)
    tqdm.monitor_interval = 0  # no thread that a fork could catch holding a lock
    signal.signal(signal.SIGCHLD, report_failures)


def write_split(path: Path, split: Split, workers: int, stage: str, reports: Reports) -> Checksums:
    """Write one split, samples in order, and return the CRC-32 of each image as it is stored."""
    count, page = len(split.labels), split_page_size(split)
    checksums = np.frombuffer(mmap.mmap(-1, 4 * count), np.uint32)  # shared with the workers
    chunks = _chunks(count)
    writer = DatasetWriter(
        str(path),
        {"image": _image_field(split), "label": IntField()},
        page_size=page,
        num_workers=min(workers, len(chunks)),
    )
    guarded = _GuardedSplit(split, checksums, page, stage, reports)
    # FFCV's public `from_indexed_dataset` does the same, but does not notice when a worker dies.
    writer._write_common(count, chunks, _guarded_job, (guarded,))
    return checksums


def check_split(
    path: Path, split: Split, checksums: Checksums, stage: str, reports: Reports
) -> tuple[str, list[int]]:
    """Read a file back and compare every sample with what was to be written.

    Returns:
        SHA-256 over each sample's pixels (or JPEG) and then its label (8 bytes, little-endian), in order; the
        labels.
    """
    count = len(split.labels)
    digest, labels = hashlib.sha256(), []
    for index, (image, label) in enumerate(_stored_samples(path)):
        if label != split.labels[index] or zlib.crc32(image) != checksums[index]:
            raise UserError(
                f"{split.name_of(index)} was not stored as it was read: is the disk full or faulty? Try again"
            )
        digest.update(image)
        digest.update(np.int64(label).astype("<i8").tobytes())
        labels.append(label)
        if len(labels) % CHUNK == 0:
            reports.progress(stage, CHUNK, count)
    if len(labels) != count:
        raise UserError(f"{path.name} holds {len(labels)} of {count} samples: is the disk full? Try again")
    return digest.hexdigest(), labels


class _GuardedSplit:
    """A split for FFCV's workers that reports progress, errors and checksums."""

    def __init__(self, split: Split, checksums: Checksums, page: int, stage: str, reports: Reports) -> None:
        self.split = split
        self.checksums = checksums
        self.page = page
        self.stage = stage
        self.reports = reports

    def __getitem__(self, index: int) -> tuple[Pixels | Jpeg, int]:
        try:
            image, label = self.split[index]
            stored = image.tobytes()
            self._require_fit(stored, index)
        except Exception as error:
            # At once: on its way out of FFCV the error would wait for another worker's page.
            self.reports.fail(error)
        self.checksums[index] = zlib.crc32(stored)
        count = len(self.checksums)
        if index % CHUNK == CHUNK - 1 or index == count - 1:
            self.reports.progress(self.stage, index % CHUNK + 1, count)
        return image, label

    def _require_fit(self, stored: bytes, index: int) -> None:
        if len(stored) > self.page:
            raise UserError(
                f"{self.split.name_of(index)} takes {len(stored) / 1e6:,.0f} MB as JPEG and"
                f" {self.page / 1e6:,.0f} fit: pass a smaller --max-side or --quality"
            )


def _guarded_job(*arguments: Any) -> None:
    """Do FFCV's work in a worker process, but report an error such as a full disk."""
    reports: Reports = arguments[-1].reports
    try:
        worker_job_indexed_dataset(*arguments)
    except Exception as error:
        reports.fail(error)


def _image_field(split: Split) -> RGBImageField:
    if not isinstance(split.form, JpegForm):
        return RGBImageField(write_mode="raw")
    field = RGBImageField(write_mode="jpg")
    # No subclass: a file tells by the exact class of a field how it is read.
    field.encode = _store_jpeg
    return field


def _store_jpeg(destination: Any, image: Jpeg, malloc: Any) -> None:
    """Store an image that is compressed already, as FFCV's field does with those it compresses."""
    destination["mode"] = IMAGE_MODES["jpg"]
    destination["height"], destination["width"] = image.height, image.width
    destination["data_ptr"], storage = malloc(len(image.data))
    storage[:] = np.frombuffer(image.data, np.uint8)


def _chunks(count: int) -> list[list[tuple[int, int]]]:
    """Return pairs of place in the file and place in the split, in portions for the workers."""
    return [[(i, i) for i in range(start, min(start + CHUNK, count))] for start in range(0, count, CHUNK)]


def _stored_samples(path: Path) -> Iterator[tuple[bytes, int]]:
    """Yield the image as it is stored, and the label, of every sample of an FFCV file."""
    reader = Reader(str(path))
    sizes = dict(zip(reader.alloc_table["ptr"].tolist(), reader.alloc_table["size"].tolist(), strict=True))
    # Read, not mapped: mapped pages would count as memory in use.
    with path.open("rb") as file:
        for (_, _, _, pointer), label in reader.metadata.tolist():
            yield os.pread(file.fileno(), sizes[pointer], pointer), label


def _ended_children() -> Iterator[int]:
    """Yield the exit status of every child that has ended."""
    try:
        while (ended := os.waitpid(-1, os.WNOHANG))[0]:
            yield ended[1]
    except ChildProcessError:
        return


def _failure(status: int) -> str:
    if os.WIFSIGNALED(status):
        name = signal.Signals(os.WTERMSIG(status)).name
        return f"a writer process was ended by {name}, perhaps for lack of memory: give it fewer --workers"
    return f"a writer process ended with exit status {os.WEXITSTATUS(status)}: please report this"
