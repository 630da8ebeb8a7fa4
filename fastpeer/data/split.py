"""Opens a split of a prepared data set, with the loader for its encoding."""

from fastpeer.config import Reader
from fastpeer.data.beton import BetonLoader, JpegLoader
from fastpeer.data.dataset import PreparedDataset
from fastpeer.data.loader import Loader
from fastpeer.data.raw import RawLoader, map_samples
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
        UserError: the file is missing or damaged, or the reader cannot read it.
    """
    path = dataset.beton(split)
    if dataset.encoding == "jpeg":
        if reader == "numpy":
            raise UserError(
                f"--data.reader must be ffcv or auto for JPEGs, which {dataset.folder} holds, got numpy"
            )
        return JpegLoader(path, batch_size, dataset.size[0], crop_scale)
    if reader == "ffcv":
        return BetonLoader(path, batch_size)
    samples = map_samples(path)
    # A file of someone else's may hold JPEGs of one size.
    if reader == "auto" and not samples.all_raw:
        return BetonLoader(path, batch_size)
    return RawLoader(path, batch_size, samples)
