"""Images with labels to train on: a prepared data set, or scikit-learn's digits, on the device."""

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import count, islice
from pathlib import Path

import numpy as np
import torch

from fastpeer.config import Config
from fastpeer.data.beton import BetonLoader
from fastpeer.data.dataset import open_dataset
from fastpeer.data.resident import ResidentSource, open_source
from fastpeer.data.stream import Batch, Source, TrainingStream
from fastpeer.data_prep.sources.digits import read_digits
from fastpeer.data_prep.sources.source import ArraySplit


@dataclass(frozen=True)
class Images:
    """A data set.

    Attributes:
        name: of the set.
        classes: how many there are.
        train, test: its splits, on the device.
    """

    name: str
    classes: int
    train: Source
    test: Source


def load_images(folder: Path | None, batch_size: int, device: torch.device) -> Images:
    """Open a folder that `fastpeer prep` wrote; without one, scikit-learn's digits, which take no FFCV."""
    if folder is None:
        digits = read_digits(None)
        splits = [_digits(split, batch_size, device) for split in digits.splits.values()]
        return Images("digits", len(digits.classes), *splits)
    dataset = open_dataset(folder)
    loaders = [BetonLoader(dataset.beton(name), batch_size) for name in ("train", "test")]
    sources = [open_source(loader, dataset.size, device, "device") for loader in loaders]
    return Images(dataset.name, len(dataset.classes), *sources)


def _digits(split: object, batch_size: int, device: torch.device) -> ResidentSource:
    assert isinstance(split, ArraySplit)  # read_digits holds its images in memory.
    samples = [split[index] for index in range(len(split.labels))]
    images = torch.from_numpy(np.stack([pixels for pixels, _ in samples]))
    labels = np.array([label for _, label in samples], dtype=np.int64)
    return ResidentSource(images.to(device), torch.from_numpy(labels).to(device), labels, batch_size)


def training_batches(images: Images, config: Config, steps: int) -> Iterator[Batch]:
    """Yield so many training batches, full ones, shuffled and augmented as the settings say."""
    indices = np.arange(len(images.train.labels))
    stream = TrainingStream(
        images.train, indices, torch.float32, config.seed, config.data.augment, config.data.shuffle,
        drop_last=True,
    )  # fmt: skip
    epochs = (stream.epoch(number) for number in count())
    return islice((batch for epoch in epochs for batch in epoch), steps)


def unseen_batches(images: Images, most: int) -> Iterator[Batch]:
    """Yield the test images, or the first `most` of them, as they are."""
    indices = np.arange(len(images.test.labels))[:most]
    return images.test.batches(indices, None, torch.float32)
