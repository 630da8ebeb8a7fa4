"""Opens a split of a prepared data set, with the loader for its encoding."""

from pathlib import Path

import numpy as np

from fastpeer.config import Reader
from fastpeer.data.beton import BetonLoader, JpegLoader
from fastpeer.data.beton_file import map_samples
from fastpeer.data.dataset import PreparedDataset
from fastpeer.data.loader import Loader
from fastpeer.data.raw import RawLoader
from fastpeer.data.threaded import ThreadedCropLoader, ThreadedLoader
from fastpeer.errors import UserError


def open_split(
    dataset: PreparedDataset,
    split: str,
    batch_size: int,
    crop_scale: tuple[float, float] = (0.08, 1.0),
    reader: Reader = "auto",
) -> Loader:
    """Return the loader of a split.

    Args:
        dataset: from `PreparedDataset.seen_at`, which sets the size for JPEGs.
        split: train or test.
        batch_size: samples in a batch; the last may have fewer.
        crop_scale: smallest and largest area of a training crop, as a share of the image; for JPEGs only.
        reader: numpy, for uncompressed images of one size; ffcv; or auto, which is numpy where that can be.

    Raises:
        UserError: the file is missing or damaged, the reader cannot read it, or it is not as the data set's
            description says.
    """
    loader = _open(dataset, dataset.beton(split), batch_size, crop_scale, reader)
    _check_description(dataset, split, loader)
    return loader


def _open(
    dataset: PreparedDataset,
    path: Path,
    batch_size: int,
    crop_scale: tuple[float, float],
    reader: Reader,
) -> Loader:
    if dataset.encoding == "jpeg":
        if reader == "numpy":
            raise UserError(
                f"--data.reader must be ffcv or auto for JPEGs, which {dataset.folder} holds, got numpy"
            )
        loader = JpegLoader if reader == "ffcv" else ThreadedCropLoader
        return loader(path, batch_size, dataset.size[0], crop_scale)
    samples = map_samples(path)
    if (sizes := samples.sizes().tolist()) != [list(dataset.size)]:
        height, width = next(size for size in sizes if size != list(dataset.size))
        raise UserError(
            f"{path}: its images must have {dataset.size[1]}x{dataset.size[0]} pixels, as dataset.json says,"
            f" got {width}x{height}"
        )
    if reader == "ffcv":
        return BetonLoader(path, batch_size, samples)
    # A file of someone else's may hold JPEGs of one size.
    if reader == "auto" and not samples.all_raw:
        return ThreadedLoader(path, batch_size, samples)
    return RawLoader(path, batch_size, samples)


def _check_description(dataset: PreparedDataset, split: str, loader: Loader) -> None:
    labels, count = loader.labels, dataset.splits[split]["count"]
    if len(labels) != count:
        raise UserError(f"{loader.path}: must hold {count} images, as dataset.json says, got {len(labels)}")
    outside = np.flatnonzero((labels < 0) | (labels >= len(dataset.classes)))
    if len(outside):
        raise UserError(
            f"{loader.path}: labels must be 0 to {len(dataset.classes) - 1}, as dataset.json has"
            f" {len(dataset.classes)} classes, got {labels[outside[0]]} for image {outside[0]}"
        )
