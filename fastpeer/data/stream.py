"""The images of a run: which are trained on, in which order, which are held out."""

from collections.abc import Generator, Iterator
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from fastpeer.data.augment import crop_and_flip, to_unit_range
from fastpeer.data.beton import BetonLoader
from fastpeer.data.counter import counter_key, permutation
from fastpeer.errors import UserError


@dataclass(frozen=True)
class Batch:
    """Images in [0, 1] (B, 3, H, W), channels-last, and labels int64 (B,), on the device that computes."""

    images: Tensor
    labels: Tensor


@dataclass(frozen=True)
class TrainingStream:
    """The training images, epoch after epoch; any step of any epoch can be asked for again.

    Args:
        loader: of the training split; its batch size is the step's.
        indices: samples trained on (n,).
        device, dtype: where and as what the images are wanted.
        seed: of order and augmentation.
        augment: random crop and flip.
        shuffle: new order each epoch.
        drop_last: leave out a partial last batch.
    """

    loader: BetonLoader
    indices: np.ndarray
    device: torch.device
    dtype: torch.dtype
    seed: int
    augment: bool
    shuffle: bool
    drop_last: bool

    @property
    def steps_per_epoch(self) -> int:
        """Number of batches."""
        size = self.loader.batch_size
        return len(self.indices) // size if self.drop_last else -(-len(self.indices) // size)

    def epoch(self, epoch: int, first: int = 0, purpose: str = "train") -> Generator[Batch, None, None]:
        """Yield the batches of an epoch from number `first` on; each purpose has a randomness of its own."""
        size = self.loader.batch_size
        order = self._order(epoch, purpose)[first * size : self.steps_per_epoch * size]
        key = counter_key(self.seed, f"{purpose} augmentation", epoch)
        for number, (images, labels) in enumerate(self.loader.batches(order)):
            samples = order[number * size : number * size + len(images)]
            yield Batch(self._prepared(images, samples, key), _copied(labels, self.device))

    def _order(self, epoch: int, purpose: str) -> np.ndarray:
        if not self.shuffle:
            return self.indices
        return permutation(self.indices, self.seed, f"{purpose} order", epoch)

    def _prepared(self, images: Tensor, samples: np.ndarray, key: int) -> Tensor:
        images = images.to(self.device)
        if self.augment:
            indices = torch.from_numpy(samples.astype(np.int64)).to(self.device)
            images = crop_and_flip(images, indices, key)
        return to_unit_range(images, self.dtype)


@dataclass(frozen=True)
class EvaluationStream:
    """Images to be classified, in order, unaugmented; as `TrainingStream` otherwise."""

    loader: BetonLoader
    indices: np.ndarray
    device: torch.device
    dtype: torch.dtype

    def __iter__(self) -> Iterator[Batch]:
        """Yield all batches."""
        for images, labels in self.loader.batches(self.indices):
            yield Batch(to_unit_range(images.to(self.device), self.dtype), _copied(labels, self.device))


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


def _copied(tensor: Tensor, device: torch.device) -> Tensor:
    """On the CPU `.to` would hand out FFCV's own memory, which it writes to again."""
    return tensor.to(device, copy=True)
