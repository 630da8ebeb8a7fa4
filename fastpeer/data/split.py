"""Opens a split of a prepared data set, with the loader for its encoding."""

from fastpeer.data.beton import BetonLoader, JpegLoader
from fastpeer.data.dataset import PreparedDataset


def open_split(
    dataset: PreparedDataset, split: str, batch_size: int, crop_scale: tuple[float, float] = (0.08, 1.0)
) -> BetonLoader:
    """Return the loader of a split.

    Args:
        dataset: from `PreparedDataset.seen_at`, which sets the size for JPEGs.
        split: train or test.
        batch_size: samples in a batch; the last may have fewer.
        crop_scale: smallest and largest area of a training crop, as a share of the image; for JPEGs only.

    Raises:
        UserError: the file is missing or damaged, or FFCV cannot read it.
    """
    path = dataset.beton(split)
    if dataset.encoding == "jpeg":
        return JpegLoader(path, batch_size, dataset.size[0], crop_scale)
    return BetonLoader(path, batch_size)
