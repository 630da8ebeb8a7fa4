"""Unpacks an archive of an image folder and prepares it, unless that was done.

python -m benchmarks.quality.prepare_images --images cifar10-jpeg.tar.xz --work WORK     writes WORK/data
"""

import shutil
import tarfile
import time
from dataclasses import dataclass
from pathlib import Path

import torch

from benchmarks.harness.display import show
from benchmarks.harness.process import run_fastpeer
from benchmarks.harness.program import start
from benchmarks.harness.record import Report, counted, read_json, write_json
from fastpeer.errors import UserError


@dataclass(frozen=True, kw_only=True)
class Arguments:
    """Prepare train/CLASS/… and test/CLASS/… out of an archive."""

    images: Path
    """Archive, as tar reads it."""
    work: Path
    """Folder for the images and for data/."""
    few: bool = False
    """A hundredth of the images alone: to see that it works."""
    seconds: float = 300.0
    """For preparing."""
    json: Path | None = None
    """Write a report there."""


def main(arguments: Arguments) -> None:
    """Unpack, prepare, write."""
    report = Report("prepare_images", arguments, torch.device("cpu"), arguments.json)
    began = time.perf_counter()
    data, source = arguments.work / "data", arguments.work / "data-source.json"
    asked = {"archive": arguments.images.name, "bytes": size_of(arguments.images), "few": arguments.few}
    if not (data / "dataset.json").is_file() or read_json(source) != asked:
        source.unlink(missing_ok=True)
        prepare(unpacked(arguments), data, arguments)
        write_json(source, asked)
    report.notes["source"] = asked
    report.add(counted("prepared", time.perf_counter() - began, "s"))
    report.save()
    show(f"prepared in {time.perf_counter() - began:.1f} s")


def size_of(archive: Path) -> int:
    """Return a file's bytes.

    Raises:
        UserError: there is none.
    """
    try:
        return archive.stat().st_size
    except OSError as error:
        raise UserError(f"--images {archive}: cannot be read ({error.strerror})") from None


def unpacked(arguments: Arguments) -> Path:
    """Unpack the archive, and return the folder.

    Raises:
        UserError: it cannot be read.
    """
    folder = arguments.work / "images"
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    try:
        with tarfile.open(arguments.images) as archive:
            members = [
                member
                for member in archive
                if not arguments.few or not member.isfile() or is_taken(member.name)
            ]
            archive.extractall(folder, members, filter="data")
    except (OSError, tarfile.TarError) as error:
        raise UserError(f"--images {arguments.images}: cannot be unpacked ({error})") from None
    return folder


def is_taken(name: str) -> bool:
    """Tell whether a file is among the few: of each class every hundredth, NNNN00.jpg and 00.jpg alike."""
    return Path(name).stem.endswith("00")


def prepare(images: Path, data: Path, arguments: Arguments) -> None:
    """Run `fastpeer prep`.

    Raises:
        UserError: it failed.
    """
    words = ["prep", "--dataset", "folder", "--source", str(images), "--out", str(data), "--force"]
    log = arguments.work / "prepare.log"
    run_fastpeer(words, arguments.seconds, log).refuse_unless_done()


if __name__ == "__main__":
    start(main, Arguments)
