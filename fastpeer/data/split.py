"""Opens a split of a prepared data set, whichever way its images are kept."""

from fastpeer.data.beton import BetonLoader, JpegLoader
from fastpeer.data.dataset import PreparedDataset


def open_split(
    dataset: PreparedDataset, split: str, batch_size: int, crop_scale: tuple[float, float] = (0.08, 1.0)
) -> BetonLoader:
    """Return the loader of a split.

    Args:
        dataset: from `PreparedDataset.seen_at`, so that it has a size.
        split: train or test.
        batch_size: samples in a batch; the last may hold fewer.
        crop_scale: see `DataConfig`; for images kept as JPEG.

    Raises:
        UserError: the file is missing, damaged or unreadable.
    """
    path = dataset.beton(split)
    if dataset.encoding == "jpeg":
        return JpegLoader(path, batch_size, dataset.size[0], crop_scale)
    return BetonLoader(path, batch_size)
