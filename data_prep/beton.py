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
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np
from ffcv.fields import IntField, RGBImageField
from ffcv.reader import Reader
from ffcv.writer import DatasetWriter, tqdm, worker_job_indexed_dataset
from numpy.typing import NDArray

from fastpeer.data_prep.image import Pixels, Target
from fastpeer.data_prep.source import Split
from fastpeer.data_prep.space import page_size
from fastpeer.errors import UserError

if TYPE_CHECKING:
    from fastpeer.data_prep.write_process import Reports

Checksums: TypeAlias = NDArray[np.uint32]
"""CRC-32 of the pixels of each sample, N."""

CHUNK = 100


def watch_workers(reports: Reports) -> None:
    """From now on, take the death of a worker for an error, since FFCV would wait for it for ever."""

    def look(number: int, frame: object) -> None:
        for status in _ended_children():
            if status != 0:
                reports.fail(UserError(_death(status)))

    # FFCV's workers have to inherit this process's memory, which holds the source.
    multiprocessing.set_start_method("fork", force=True)
    tqdm.monitor_interval = 0  # no thread that a fork could catch holding a lock
    signal.signal(signal.SIGCHLD, look)


def write_split(
    path: Path, split: Split, target: Target, workers: int, stage: str, reports: Reports
) -> Checksums:
    """Write one split, samples in order, and return the CRC-32 of each image's pixels."""
    count = len(split.labels)
    checksums = np.frombuffer(mmap.mmap(-1, 4 * count), np.uint32)  # shared with the workers
    chunks = _chunks(count)
    writer = DatasetWriter(
        str(path),
        {"image": RGBImageField(write_mode="raw"), "label": IntField()},
        page_size=page_size(target),
        num_workers=min(workers, len(chunks)),
    )
    guarded = _GuardedSplit(split, checksums, stage, reports)
    # FFCV's public `from_indexed_dataset` does the same, but lets a worker die unheard.
    writer._write_common(count, chunks, _guarded_job, (guarded,))
    return checksums


def check_split(
    path: Path, split: Split, checksums: Checksums, stage: str, reports: Reports
) -> tuple[str, list[int]]:
    """Read a file back and compare every sample with what was to be written.

    Returns:
        SHA-256 over each sample's pixels and then its label (8 bytes, little-endian), in order; the labels.
    """
    count = len(split.labels)
    digest, labels = hashlib.sha256(), []
    for index, (pixels, label) in enumerate(_stored_samples(path)):
        if label != split.labels[index] or zlib.crc32(pixels) != checksums[index]:
            raise UserError(
                f"{split.name_of(index)} was not stored as it is: is the disk full or faulty? Try again"
            )
        digest.update(pixels)
        digest.update(np.int64(label).astype("<i8").tobytes())
        labels.append(label)
        if len(labels) % CHUNK == 0:
            reports.progress(stage, CHUNK, count)
    if len(labels) != count:
        raise UserError(f"{path.name} holds {len(labels)} of {count} samples: is the disk full? Try again")
    return digest.hexdigest(), labels


class _GuardedSplit:
    """A split for FFCV's workers that reports progress, errors and checksums."""

    def __init__(self, split: Split, checksums: Checksums, stage: str, reports: Reports) -> None:
        self.split = split
        self.checksums = checksums
        self.stage = stage
        self.reports = reports

    def __getitem__(self, index: int) -> tuple[Pixels, int]:
        try:
            pixels, label = self.split[index]
        except Exception as error:
            # At once: on its way out of FFCV the error would wait for another worker's page.
            self.reports.fail(error)
        self.checksums[index] = zlib.crc32(pixels.tobytes())
        count = len(self.checksums)
        if index % CHUNK == CHUNK - 1 or index == count - 1:
            self.reports.progress(self.stage, index % CHUNK + 1, count)
        return pixels, label


def _guarded_job(*arguments: Any) -> None:
    """Do FFCV's work in a worker process, but report an error such as a full disk."""
    reports: Reports = arguments[-1].reports
    try:
        worker_job_indexed_dataset(*arguments)
    except Exception as error:
        reports.fail(error)


def _chunks(count: int) -> list[list[tuple[int, int]]]:
    """Return pairs of place in the file and place in the split, in portions for the workers."""
    return [[(i, i) for i in range(start, min(start + CHUNK, count))] for start in range(0, count, CHUNK)]


def _stored_samples(path: Path) -> Iterator[tuple[bytes, int]]:
    """Yield the pixels and the label of every sample of an FFCV file."""
    reader = Reader(str(path))
    # Read, not mapped: mapped pages would count as memory in use.
    with path.open("rb") as file:
        for (_, width, height, pointer), label in reader.metadata.tolist():
            yield os.pread(file.fileno(), width * height * 3, pointer), label


def _ended_children() -> Iterator[int]:
    """Yield the exit status of every child that has ended."""
    try:
        while (ended := os.waitpid(-1, os.WNOHANG))[0]:
            yield ended[1]
    except ChildProcessError:
        return


def _death(status: int) -> str:
    if os.WIFSIGNALED(status):
        name = signal.Signals(os.WTERMSIG(status)).name
        return f"a writer process was ended by {name}, perhaps for lack of memory: give it fewer --workers"
    return f"a writer process ended with exit status {os.WEXITSTATUS(status)}: please report this"
