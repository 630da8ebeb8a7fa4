"""The writer process: `python -m fastpeer.data_prep.writer.process`, with a pickled `Job` on standard input.

It leads a process group of its own. Whoever in the group finds an error reports it and ends the group.
"""

from __future__ import annotations

import json
import os
import pickle
import sys
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import fastpeer
from fastpeer.data_prep.destination import MANIFEST
from fastpeer.data_prep.images import Form, JpegForm
from fastpeer.data_prep.sources import Origin, open_source
from fastpeer.data_prep.sources.source import DrawnPart, Source
from fastpeer.data_prep.writer.messages import Job, Reports
from fastpeer.data_prep.writer.space import require_space
from fastpeer.errors import UserError, one_line
from fastpeer.files import file_sha256
from fastpeer.versions import version_of

FORMAT = 1


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
    """Write both splits and `dataset.json`, and return the latter's content.

    Raises:
        UserError: the source or the disk is at fault.
    """
    source, origin = _open(job)
    workers = job.options.workers or len(os.sched_getaffinity(0))
    require_space(job.folder, source, workers)
    splits = _write_splits(job.folder, source, workers, reports)
    manifest = _manifest(job.options.dataset, source, origin, splits)
    (job.folder / MANIFEST).write_text(json.dumps(manifest, indent=1) + "\n", encoding="utf-8")
    return manifest


def _open(job: Job) -> tuple[Source, Origin]:
    options = job.options
    draw = DrawnPart(options.test_fraction, options.test_seed) if options.test_fraction is not None else None
    form = JpegForm(options.jpeg_quality, options.max_side) if options.jpeg else None
    source, origin = open_source(options.dataset, options.source, options.size, draw, form)
    source.require_classes()
    return source, replace(origin, kind="download") if job.downloaded else origin


def _write_splits(folder: Path, source: Source, workers: int, reports: Reports) -> dict[str, Any]:
    """Write and check each split; return what `dataset.json` tells of them."""
    # FFCV takes seconds to import: whatever is wrong with the source has been reported by now.
    try:
        from fastpeer.data_prep.writer import beton
    except ImportError as error:
        raise UserError(
            f"FFCV, which writes .beton files, cannot be imported ({one_line(error)}): pip install ffcv, or"
            " copy a folder that was prepared on another machine"
        ) from None

    beton.watch_workers(reports)
    splits = {}
    for name, split in source.splits.items():
        path = folder / f"{name}.beton"
        checksums = beton.write_split(path, split, workers, f"write {name}", reports)
        content_sha256, labels = beton.check_split(path, split, checksums, f"check {name}", reports)
        splits[name] = _split_entry(path, content_sha256, labels, len(source.classes))
    return splits


def _split_entry(path: Path, content_sha256: str, labels: list[int], classes: int) -> dict[str, Any]:
    return {
        "file": path.name,
        "count": len(labels),
        "per_class": [labels.count(label) for label in range(classes)],
        "bytes": path.stat().st_size,
        "sha256": file_sha256(path),
        "content_sha256": content_sha256,
    }


def _manifest(dataset: str, source: Source, origin: Origin, splits: dict[str, Any]) -> dict[str, Any]:
    manifest = {
        "format": FORMAT,
        "name": dataset,
        "classes": source.classes,
        **_form_entries(source.form),
        "splits": splits,
        "source": asdict(origin),
        "written_by": f"fastpeer {fastpeer.__version__}",
        "ffcv": version_of("ffcv"),
    }
    rare = {
        "class_names": source.class_names,
        "test_draw": asdict(source.draw) if source.draw else None,
        "pixels": source.pixels,
        "notes": source.written_notes(),
    }
    return manifest | {name: value for name, value in rare.items() if value}


def _form_entries(form: Form) -> dict[str, Any]:
    """Return what `dataset.json` tells of how the images are kept."""
    if isinstance(form, JpegForm):
        return {"size": None, "encoding": "jpeg", **asdict(form)}
    # No "encoding": files from before there was JPEG have none either.
    return {"size": [form.height, form.width]}


if __name__ == "__main__":
    main()
