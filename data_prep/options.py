"""What the user asks for, and what is handed back."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal, get_args

from tyro.conf import Suppress

from fastpeer.errors import UserError

DatasetName = Literal["digits", "cifar10", "cifar100", "tiny", "folder"]
DATASETS: tuple[str, ...] = get_args(DatasetName)
JPEG_DATASETS = ("folder", "tiny")
JPEG_QUALITY = 90
MAX_SIDE = 4096
MAX_PIXELS = 80_000_000
"""Of one image, known from its header before it is decoded; a small file may declare billions. Below the
bound from which Pillow warns."""

Progress = Callable[[str, int, int], None]
"""Called as `progress(stage, done, total)`; stages are "download", then "write" and "check" of
"train" and "test", as in "write train"."""


# The flags of `fastpeer prep`: their help is the text below each field, in this order.
@dataclass(frozen=True, kw_only=True)
class PrepOptions:
    """Turn a data set into .beton files that training reads."""

    dataset: DatasetName
    """digits needs no source; cifar10, cifar100 and tiny are downloaded where none is given."""
    source: Path | None = None
    """An official archive, its extracted folder, or a folder train/CLASS/..., test/CLASS/..."""
    out: Path | None = None
    """Folder to write; default: data/DATASET."""
    size: int | None = None
    """Height and width of the images; needed where the source holds several sizes, except with --jpeg."""
    jpeg: bool = False
    """Keep images (of folder and tiny) in their own sizes, as JPEG: they are decoded, cut at random and
    resized anew for each batch. Baseline JPEGs are taken as they are, others are encoded."""
    max_side: int | None = None
    """With --jpeg: images whose longer side is longer are scaled down to it."""
    quality: int | None = None
    """With --jpeg: quality, 1 to 100, of what has to be encoded (default 90)."""
    test_fraction: float | None = None
    """For folders without test images: part of each class's images, such as 0.2, that is kept for testing."""
    test_seed: int = 0
    """With --test-fraction: another number chooses other images."""
    workers: int = 0
    """Processes that decode; 0: one per core."""
    force: bool = False
    """Replace a data set that already stands there."""
    quiet: bool = False
    """Print nothing but warnings and errors."""
    download_dir: Annotated[Path | None, Suppress] = None
    """Folder that keeps downloaded archives; default: the user's cache folder. Not a flag."""

    @property
    def out_folder(self) -> Path:
        """The folder to write: `out` or else `data/DATASET`."""
        return self.out or Path("data") / self.dataset

    @property
    def jpeg_quality(self) -> int:
        """Quality of the images that have to be encoded, 1 to 100."""
        return JPEG_QUALITY if self.quality is None else self.quality

    def check(self) -> None:
        """Raise UserError for a value that no run could use."""
        if self.dataset not in DATASETS:
            raise UserError(f"unknown data set {self.dataset!r}: choose one of {', '.join(DATASETS)}")
        _check_range("--size", self.size, MAX_SIDE, " pixels")
        if self.workers < 0:
            raise UserError(f"--workers {self.workers} is negative: give 0 for one process for each core")
        self._check_source()
        self._check_test_fraction()
        self._check_jpeg()

    def _check_source(self) -> None:
        if self.dataset == "digits" and self.source is not None:
            raise UserError("the digits come with scikit-learn: leave --source out")
        if self.dataset == "folder" and self.source is None:
            raise UserError(
                "--dataset folder needs --source: the folder or archive that holds train/ and test/"
            )

    def _check_test_fraction(self) -> None:
        if self.test_fraction is None:
            if self.test_seed:
                raise UserError("--test-seed is for --test-fraction: pass that too")
        elif self.dataset != "folder":
            raise UserError("--test-fraction is for --dataset folder: others have their own test images")
        elif not 0 < self.test_fraction < 1:
            raise UserError(
                f"--test-fraction must lie between 0 and 1, got {self.test_fraction:g}: give one such as 0.2"
            )

    def _check_jpeg(self) -> None:
        if not self.jpeg:
            if self.max_side is not None or self.quality is not None:
                raise UserError("--max-side and --quality are for images kept as JPEG: pass --jpeg too")
            return
        if self.dataset not in JPEG_DATASETS:
            raise UserError(f"--jpeg keeps image files: it is for --dataset {' and '.join(JPEG_DATASETS)}")
        if self.size is not None:
            raise UserError("--size makes images of one size, which --jpeg does not: leave one of them out")
        _check_range("--max-side", self.max_side, MAX_SIDE, " pixels")
        _check_range("--quality", self.quality, 100)


def _check_range(flag: str, value: int | None, highest: int, unit: str = "") -> None:
    if value is not None and not 1 <= value <= highest:
        raise UserError(f"{flag} {value} is out of range: give 1 to {highest}{unit}")


@dataclass(frozen=True)
class PrepSummary:
    """A finished data set.

    Attributes:
        out: its folder.
        classes: number of classes.
        counts: images in each split, as {"train": 50000, "test": 10000}.
        size: height and width of every image in pixels; None where they are of many sizes.
        bytes: size of the two FFCV files together.
        seconds: wall time of the run.
        notes: what of the source was left out or taken otherwise than its names tell, a line each.
        pixels: whether they are the official data set's, and why not; empty for others.
    """

    out: Path
    classes: int
    counts: dict[str, int]
    size: tuple[int, int] | None
    bytes: int
    seconds: float
    notes: tuple[str, ...] = ()
    pixels: str = ""
