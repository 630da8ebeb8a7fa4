"""The course of one preparation: check, fetch, write beside the destination, move into place."""

from __future__ import annotations

import os
import time
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from fastpeer.data_prep.destination import Destination
from fastpeer.data_prep.download import OFFICIAL, Remote, fetch
from fastpeer.data_prep.options import PrepOptions, PrepSummary, Progress
from fastpeer.data_prep.writer.launch import run_writer
from fastpeer.data_prep.writer.messages import Job
from fastpeer.errors import UserError


def prepare(
    options: PrepOptions,
    progress: Progress | None = None,
    remotes: Mapping[str, Remote] = OFFICIAL,
) -> PrepSummary:
    """Write `train.beton`, `test.beton` and `dataset.json` into `options.out_folder`.

    Nothing appears there before everything is written and read back; after an error or a Ctrl-C what had
    been begun is removed, and what stood there before still stands.

    Args:
        options: what to prepare; `quiet` changes nothing here, where nothing is printed.
        progress: called from time to time with a stage, the part done and the whole.
        remotes: addresses and checksums of the archives that can be downloaded.

    Raises:
        UserError: the source, the destination or an option is at fault; one line tells what to do.
    """
    started = time.monotonic()
    report = progress or _no_progress
    options.check()
    if options.source is not None and not os.path.exists(options.source):
        raise UserError(f"{options.source} does not exist: check the path given as --source")
    destination = Destination(options.out_folder, options.force)
    destination.clear_leftovers()
    # Before a download that would be for nothing, and again when the new folder takes its place.
    destination.check()
    options, downloaded = _with_source(options, remotes, report)
    with destination.partial() as folder:
        manifest = run_writer(Job(options, folder, downloaded), report)
        destination.put_in_place(folder)
    return _summary(options, manifest, time.monotonic() - started)


def _no_progress(stage: str, done: int, total: int) -> None:
    """Stand in for a progress bar."""


def _with_source(
    options: PrepOptions, remotes: Mapping[str, Remote], report: Progress
) -> tuple[PrepOptions, bool]:
    """Return the options with an absolute path as their source, and whether it was downloaded."""
    source, downloaded = options.source, False
    if source is None and options.dataset in remotes:
        source, downloaded = fetch(remotes[options.dataset], options.download_dir, report), True
    # Absolute, since the writer runs in another folder.
    return replace(options, source=source.resolve() if source else None), downloaded


def _summary(options: PrepOptions, manifest: dict[str, Any], seconds: float) -> PrepSummary:
    splits = manifest["splits"]
    return PrepSummary(
        out=options.out_folder,
        classes=len(manifest["classes"]),
        counts={name: split["count"] for name, split in splits.items()},
        size=tuple(manifest["size"]) if manifest["size"] else None,
        bytes=sum(split["bytes"] for split in splits.values()),
        seconds=seconds,
        notes=tuple(manifest.get("notes", ())),
        pixels=manifest.get("pixels", ""),
    )
