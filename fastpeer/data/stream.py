"""The batches of a run: which images are trained on, in which order, and which are held out."""

from collections.abc import Generator
from dataclasses import dataclass, replace
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from fastpeer.data.counter import counter_key, permutation
from fastpeer.errors import UserError


@dataclass(frozen=True)
class Batch:
    """Images in [0, 1] (B, 3, H, W), channels-last, and labels int64 (B,), on the device that computes."""

    images: Tensor
    labels: Tensor


class Source(Protocol):
    """Provides the batches of a split; all sources give the same batches, bit for bit."""

    @property
    def labels(self) -> np.ndarray:
        """Labels of all samples, int64 (N,)."""

    @property
    def batch_size(self) -> int:
        """Samples in a batch; the last may have fewer."""

    @property
    def device(self) -> torch.device:
        """The device of the batches."""

    def batches(self, order: np.ndarray, key: int | None, dtype: torch.dtype) -> Generator[Batch, None, None]:
        """Yield batches of samples; each stays valid when later ones are taken.

        Args:
            order: indices of the samples (n,).
            key: 64-bit key of the augmentation; None: no augmentation.
            dtype: dtype of the images.
        """


@dataclass(frozen=True)
class TrainingStream:
    """The training batches of any epoch, reproducible from any step.

    Args:
        source: the training split; its batch size is the step's.
        indices: indices of the training images (n,).
        dtype: dtype of the images.
        seed: seed of order and augmentation.
        augment: whether images are randomly cropped and flipped.
        shuffle: whether each epoch has a new random order.
        drop_last: whether a partial last batch is left out.
    """

    source: Source
    indices: np.ndarray
    dtype: torch.dtype
    seed: int
    augment: bool
    shuffle: bool
    drop_last: bool

    @property
    def steps_per_epoch(self) -> int:
        """Number of batches in an epoch."""
        size = self.source.batch_size
        return len(self.indices) // size if self.drop_last else -(-len(self.indices) // size)

    def epoch(self, epoch: int, first: int = 0, purpose: str = "train") -> Generator[Batch, None, None]:
        """Yield the batches of an epoch, starting with batch number `first`.

        Order and augmentation are functions of seed, purpose and epoch alone: a resumed run starts in the
        middle of an epoch without reading the batches before.

        Args:
            epoch: number of the epoch, from 0.
            first: number of the first batch, from 0.
            purpose: train or averaging; each has an order and augmentation of its own.
        """
        size = self.source.batch_size
        order = self._order(epoch, purpose)[first * size : self.steps_per_epoch * size]
        key = counter_key(self.seed, f"{purpose} augmentation", epoch) if self.augment else None
        return self.source.batches(order, key, self.dtype)

    def _order(self, epoch: int, purpose: str) -> np.ndarray:
        if not self.shuffle:
            return self.indices
        return permutation(self.indices, self.seed, f"{purpose} order", epoch)


@dataclass(frozen=True)
class EvaluationStream:
    """Unaugmented batches of images in a fixed order, for classification.

    Args:
        source: the split.
        indices: indices of the images (n,).
        dtype: dtype of the images.
    """

    source: Source
    indices: np.ndarray
    dtype: torch.dtype

    @property
    def device(self) -> torch.device:
        """The device of the batches."""
        return self.source.device

    def sample(self, count: int) -> "EvaluationStream":
        """Return a stream of up to `count` of the images, evenly spread."""
        return replace(self, indices=spread(self.indices, count))

    def only(self, places: np.ndarray) -> "EvaluationStream":
        """Return a stream of the images at some places of this one, int64 (m,)."""
        return replace(self, indices=self.indices[places])

    def __iter__(self) -> Generator[Batch, None, None]:
        """Yield the batches, from the first image on at each call."""
        return self.source.batches(self.indices, None, self.dtype)


def hold_out(labels: np.ndarray, fraction: float) -> tuple[np.ndarray, np.ndarray]:
    """Split sample indices into training and held-out ones, class by class.

    The last images of each class, in the data set's order, are held out: at least one, and never all. No seed
    is involved: runs with different seeds are selected on the same images.

    Args:
        labels: int64 (N,).
        fraction: share of each class that is held out, in (0, 1).

    Returns:
        Training and held-out indices, each in ascending order.

    Raises:
        UserError: a class has only one image.
    """
    held_out: list[np.ndarray] = []
    for label in np.unique(labels):
        members = np.flatnonzero(labels == label)
        if len(members) < 2:
            raise UserError(
                f"class {label} has one training image, so none can be held out: use --selection.split test"
            )
        count = min(max(1, round(fraction * len(members))), len(members) - 1)
        held_out.append(members[-count:])
    held = np.sort(np.concatenate(held_out))
    return np.setdiff1d(np.arange(len(labels)), held), held


def spread(indices: np.ndarray, count: int) -> np.ndarray:
    """Return `count` of the indices, evenly spread; all of them if `count` is 0 or too large."""
    if count <= 0 or count >= len(indices):
        return indices
    return indices[np.arange(count) * len(indices) // count]
