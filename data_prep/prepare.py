"""The course of one preparation: check, fetch, write beside the destination, move into place."""

from __future__ import annotations

import os
import time
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from fastpeer.data_prep.destination import Destination
from fastpeer.data_prep.download import OFFICIAL, Remote, fetch
from fastpeer.data_prep.options import JPEG_QUALITY, PrepOptions, PrepSummary, Progress
from fastpeer.data_prep.write import Job, run_writer
from fastpeer.errors import UserError


def prepare(
    options: PrepOptions,
    progress: Progress | None = None,
    remotes: Mapping[str, Remote] = OFFICIAL,
) -> PrepSummary:
    """Write `train.beton`, `test.beton` and `dataset.json` into `options.out`.

    Nothing appears in `options.out` before everything is written and read back; after an error or a
    Ctrl-C what had been begun is removed, and what stood there before still stands.

    Args:
        options: what to prepare.
        progress: called from time to time with a stage, the part done and the whole.
        remotes: addresses and checksums of the archives that can be downloaded.

    Raises:
        UserError: the source, the destination or an option is at fault; says which and what to do.
    """
    started = time.monotonic()
    report = progress or _silent
    options.check()
    if options.source is not None and not os.path.exists(options.source):
        raise UserError(f"{options.source} does not exist: check the path given as --source")
    destination = Destination(options.out, options.force)
    destination.check()
    job = _job(options, report, remotes)
    with destination.partial() as folder:
        manifest = run_writer(replace(job, folder=folder), report)
        destination.put_in_place(folder)
    return _summary(options, manifest, time.monotonic() - started)


def _silent(stage: str, done: int, total: int) -> None:
    """Stand in for a progress bar."""


def _job(options: PrepOptions, report: Progress, remotes: Mapping[str, Remote]) -> Job:
    """Find the source, downloading it where none was given."""
    source, kind = options.source, None
    if source is None and options.dataset in remotes:
        source, kind = fetch(remotes[options.dataset], options.download_dir, report), "download"
    return Job(
        dataset=options.dataset,
        source=source.resolve() if source else None,
        kind=kind,
        size=options.size,
        workers=options.workers,
        jpeg=options.jpeg,
        max_side=options.max_side,
        quality=JPEG_QUALITY if options.quality is None else options.quality,
    )


def _summary(options: PrepOptions, manifest: dict[str, Any], seconds: float) -> PrepSummary:
    splits = manifest["splits"]
    return PrepSummary(
        out=options.out,
        classes=len(manifest["classes"]),
        counts={name: split["count"] for name, split in splits.items()},
        size=tuple(manifest["size"]) if manifest["size"] else None,
        bytes=sum(split["bytes"] for split in splits.values()),
        seconds=seconds,
    )
