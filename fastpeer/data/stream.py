"""The images of a run: which are trained on, in which order, which are held out."""

from collections.abc import Generator
from dataclasses import dataclass
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
    """Where the images of a split come from: all sources give the same batches."""

    @property
    def labels(self) -> np.ndarray:
        """Labels of all samples, int64 (N,)."""

    @property
    def batch_size(self) -> int:
        """Samples in a batch; the last may hold fewer."""

    @property
    def device(self) -> torch.device:
        """Where the batches are."""

    def batches(self, order: np.ndarray, key: int | None, dtype: torch.dtype) -> Generator[Batch, None, None]:
        """Yield samples as batches that outlive later ones.

        Args:
            order: indices of samples (n,).
            key: of their augmentation; None: none.
            dtype: of the images.
        """


@dataclass(frozen=True)
class TrainingStream:
    """The training images, epoch after epoch; any step of any epoch can be asked for again.

    Args:
        source: of the training split; its batch size is the step's.
        indices: samples trained on (n,).
        dtype: as what the images are wanted.
        seed: of order and augmentation.
        augment: random crop and flip.
        shuffle: new order each epoch.
        drop_last: leave out a partial last batch.
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
        """Number of batches."""
        size = self.source.batch_size
        return len(self.indices) // size if self.drop_last else -(-len(self.indices) // size)

    def epoch(self, epoch: int, first: int = 0, purpose: str = "train") -> Generator[Batch, None, None]:
        """Yield the batches of an epoch from number `first` on; each purpose has a randomness of its own."""
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
    """Images to be classified, in order, unaugmented; as `TrainingStream` otherwise."""

    source: Source
    indices: np.ndarray
    dtype: torch.dtype

    @property
    def device(self) -> torch.device:
        """Where the batches are."""
        return self.source.device

    def __iter__(self) -> Generator[Batch, None, None]:
        """Yield all batches."""
        return self.source.batches(self.indices, None, self.dtype)


def hold_out(labels: np.ndarray, fraction: float) -> tuple[np.ndarray, np.ndarray]:
    """Split sample indices into a part to train on and a held-out one, class by class.

    The last images of each class, in the data set's order, are held out: at least one, never all.

    Args:
        labels: int64 (N,).
        fraction: of each class, in (0, 1).

    Returns:
        Indices trained on and held out, each in ascending order.
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
    """Pick `count` of the indices, evenly spread over them; all where `count` is 0 or more than there are."""
    if count <= 0 or count >= len(indices):
        return indices
    return indices[np.arange(count) * len(indices) // count]
