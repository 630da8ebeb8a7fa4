"""What the user asks for, and what is handed back."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from fastpeer.errors import UserError

DATASETS = ("digits", "cifar10", "cifar100", "tiny", "folder")
JPEG_DATASETS = ("folder", "tiny")
JPEG_QUALITY = 90
MAX_SIDE = 4096

Progress = Callable[[str, int, int], None]
"""Called as `progress(stage, done, total)`; stages are "download", then "write" and "check" of
"train" and "test", as in "write train"."""


@dataclass(frozen=True)
class PrepOptions:
    """One run of the preparation.

    Args:
        dataset: one of `DATASETS`.
        out: the folder to make, with `train.beton`, `test.beton` and `dataset.json`.
        source: an official archive, its unpacked folder, or a folder or archive of
            `train/<class>/` and `test/<class>/` images; None downloads the official archive.
        size: side in pixels: the shorter side is resized to it, then the centre is cropped.
            None keeps the images as they are (digits: 32), which must then be of one size.
        force: replace a prepared data set in `out`.
        workers: processes that decode; 0 takes one for each core.
        download_dir: where downloaded archives are kept; None takes the user's cache folder.
        jpeg: keep the files of an image folder in their own sizes, as JPEG.
        max_side: with jpeg, the longer side of larger images is scaled down to it; None: no limit.
        quality: with jpeg, of what has to be encoded, 1 to 100; None: 90.
    """

    dataset: str
    out: Path
    source: Path | None = None
    size: int | None = None
    force: bool = False
    workers: int = 0
    download_dir: Path | None = None
    jpeg: bool = False
    max_side: int | None = None
    quality: int | None = None

    def check(self) -> None:
        """Raise UserError for a value that no run could use."""
        if self.dataset not in DATASETS:
            raise UserError(f"unknown data set {self.dataset!r}: choose one of {', '.join(DATASETS)}")
        if self.size is not None and not 1 <= self.size <= MAX_SIDE:
            raise UserError(f"--size {self.size} is out of range: give 1 to {MAX_SIDE} pixels")
        if self.workers < 0:
            raise UserError(f"--workers {self.workers} is negative: give 0 for one process for each core")
        if self.dataset == "digits" and self.source is not None:
            raise UserError("the digits come with scikit-learn: leave --source out")
        if self.dataset == "folder" and self.source is None:
            raise UserError(
                "--dataset folder needs --source: the folder or archive that holds train/ and test/"
            )
        self._check_jpeg()

    def _check_jpeg(self) -> None:
        if not self.jpeg:
            if self.max_side is not None or self.quality is not None:
                raise UserError("--max-side and --quality are for images kept as JPEG: pass --jpeg too")
            return
        if self.dataset not in JPEG_DATASETS:
            raise UserError(f"--jpeg keeps image files: it is for --dataset {' and '.join(JPEG_DATASETS)}")
        if self.size is not None:
            raise UserError("--size makes images of one size, which --jpeg does not: leave one of them out")
        if self.max_side is not None and not 1 <= self.max_side <= MAX_SIDE:
            raise UserError(f"--max-side {self.max_side} is out of range: give 1 to {MAX_SIDE} pixels")
        if self.quality is not None and not 1 <= self.quality <= 100:
            raise UserError(f"--quality {self.quality} is out of range: give 1 to 100")


@dataclass(frozen=True)
class PrepSummary:
    """A finished data set.

    Attributes:
        out: its folder.
        classes: number of classes.
        counts: images in each split, as {"train": 50000, "test": 10000}.
        size: height and width of every image; None where they are of many sizes.
        bytes: size of the two FFCV files together.
        seconds: wall time of the run.
    """

    out: Path
    classes: int
    counts: dict[str, int]
    size: tuple[int, int] | None
    bytes: int
    seconds: float
