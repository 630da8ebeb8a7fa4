"""The writer process: `python -m fastpeer.data_prep.write_process`, with a pickled `Job` on standard input.

It leads a process group of its own. Whoever in the group finds an error reports it and ends the group.
"""

from __future__ import annotations

import errno
import json
import os
import pickle
import signal
import sys
import traceback
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, NoReturn

import fastpeer
from fastpeer.data_prep.destination import MANIFEST
from fastpeer.data_prep.image import Target
from fastpeer.data_prep.jpeg import JpegForm, kept_as_jpeg
from fastpeer.data_prep.source import Origin, Source, open_source
from fastpeer.data_prep.space import require_space
from fastpeer.data_prep.tree import sha256_of
from fastpeer.data_prep.write import Job
from fastpeer.errors import UserError, one_line
from fastpeer.versions import version_of

FORMAT = 1
REPORT_LIMIT = 3000  # a pipe keeps lines below 4096 bytes whole, whichever process writes them
DISK_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


class Reports:
    """Lines of JSON to the process that waits for this one.

    Args:
        descriptor: the pipe; forked processes write into the same.
    """

    def __init__(self, descriptor: int) -> None:
        self.descriptor = descriptor

    def progress(self, stage: str, done: int, total: int) -> None:
        """Say that `done` more samples of `total` are through a stage."""
        self._send({"stage": stage, "done": done, "total": total})

    def manifest(self, manifest: dict[str, Any]) -> None:
        """Say that all is written."""
        self._send({"manifest": manifest})

    def fail(self, error: Exception) -> NoReturn:
        """Report an error (an unforeseen one as a traceback) and end the group, this process included."""
        try:
            if isinstance(error, UserError | OSError | MemoryError):
                self._send({"error": _message(error)[:REPORT_LIMIT]})
            else:
                traceback.print_exception(error)
                sys.stderr.flush()
        finally:
            os.killpg(0, signal.SIGTERM)
        raise SystemExit(1)

    def _send(self, report: dict[str, Any]) -> None:
        rest = json.dumps(report).encode() + b"\n"
        while rest:
            rest = rest[os.write(self.descriptor, rest) :]


def main() -> None:
    """Do the job that comes through standard input."""
    reports = Reports(os.dup(1))
    # What libraries print must not come between the reports.
    os.dup2(2, 1)
    try:
        job: Job = pickle.load(sys.stdin.buffer)
        manifest = write(job, reports)
    except Exception as error:
        reports.fail(error)
    reports.manifest(manifest)
    # Workers that have been waited for already would be waited for again by a regular exit.
    os._exit(0)


def write(job: Job, reports: Reports) -> dict[str, Any]:
    """Write both splits and `dataset.json`, and return the latter's content."""
    source, origin = open_source(job.dataset, job.source, job.size)
    origin = replace(origin, kind=job.kind or origin.kind)
    if job.jpeg:
        source = kept_as_jpeg(source, JpegForm(job.quality, job.max_side))
    workers = job.workers or len(os.sched_getaffinity(0))
    require_space(job.folder, source, workers)

    # FFCV takes seconds to import: whatever is wrong with the source has been said by now.
    from fastpeer.data_prep import beton

    beton.watch_workers(reports)
    splits = {}
    for name, split in source.splits.items():
        path = job.folder / f"{name}.beton"
        checksums = beton.write_split(path, split, workers, f"write {name}", reports)
        content_sha256, labels = beton.check_split(path, split, checksums, f"check {name}", reports)
        splits[name] = _split_entry(path, content_sha256, labels, len(source.classes))
    manifest = _manifest(job, source, origin, splits)
    (job.folder / MANIFEST).write_text(json.dumps(manifest, indent=1) + "\n", encoding="utf-8")
    return manifest


def _split_entry(path: Path, content_sha256: str, labels: list[int], classes: int) -> dict[str, Any]:
    return {
        "file": path.name,
        "count": len(labels),
        "per_class": [labels.count(label) for label in range(classes)],
        "bytes": path.stat().st_size,
        "sha256": sha256_of(path),
        "content_sha256": content_sha256,
    }


def _manifest(job: Job, source: Source, origin: Origin, splits: dict[str, Any]) -> dict[str, Any]:
    manifest = {
        "format": FORMAT,
        "name": job.dataset,
        "classes": source.classes,
        **_form_entries(source.target),
        "splits": splits,
        "source": asdict(origin),
        "written_by": f"fastpeer {fastpeer.__version__}",
        "ffcv": version_of("ffcv"),
    }
    return manifest | ({"class_names": source.class_names} if source.class_names else {})


def _form_entries(target: Target | JpegForm) -> dict[str, Any]:
    """Return what `dataset.json` says of how the images are kept; of old, it says no encoding of raw ones."""
    if isinstance(target, Target):
        return {"size": [target.height, target.width]}
    return {"size": None, "encoding": "jpeg", **asdict(target)}


def _message(error: Exception) -> str:
    if isinstance(error, OSError) and error.errno in DISK_FULL:
        return "the disk is full or the file too large for it: free some room or choose another --out"
    if isinstance(error, MemoryError):
        return "out of memory: close other programs or give it fewer --workers"
    return one_line(error) or type(error).__name__


if __name__ == "__main__":
    main()
