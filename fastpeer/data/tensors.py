"""Sources of batches for evaluation alone: images that somebody has in memory, and another memory format."""

from collections.abc import Generator, Iterable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from fastpeer.data.stream import Batch, Source
from fastpeer.errors import UserError


@dataclass(frozen=True)
class TensorSource:
    """Images (N, C, H, W) in [0, 1] and labels int64 (N,) in memory, in batches on a device, unaugmented."""

    images: Tensor
    targets: Tensor
    batch_size: int
    device: torch.device

    @staticmethod
    def of(data: object, batch_size: int, device: torch.device) -> "TensorSource":
        """Take images and labels as somebody gives them: a pair of tensors, or batches of such pairs.

        Raises:
            UserError: they are none, with what must be and what was got.
        """
        pairs = [_pair(data)] if isinstance(data, tuple) and len(data) == 2 else _collected(data)
        for images, labels in pairs:
            _check(images, labels)
        shapes = {tuple(images.shape[1:]) for images, _ in pairs}
        if len(shapes) > 1:
            raise UserError(f"images must be of one shape, got {' and '.join(map(str, sorted(shapes)[:2]))}")
        images, targets = (torch.cat([pair[side].detach().cpu() for pair in pairs]) for side in (0, 1))
        return TensorSource(images.float(), targets.long(), batch_size, device)

    @property
    def labels(self) -> np.ndarray:
        """Labels of all samples, int64 (N,)."""
        labels: np.ndarray = self.targets.numpy()
        return labels

    def batches(self, order: np.ndarray, key: int | None, dtype: torch.dtype) -> Generator[Batch, None, None]:
        """Yield batches, see `fastpeer.data.stream.Source`."""
        assert key is None
        places = torch.from_numpy(order.astype(np.int64))
        for chosen in torch.split(places, self.batch_size):
            images = self.images[chosen].to(self.device, dtype)
            yield Batch(
                images.contiguous(memory_format=torch.channels_last), self.targets[chosen].to(self.device)
            )


@dataclass(frozen=True)
class RowMajorSource:
    """The batches of another source in NCHW order, for networks that do not run in channels-last memory."""

    source: Source

    @property
    def labels(self) -> np.ndarray:
        """Labels of all samples, int64 (N,)."""
        return self.source.labels

    @property
    def batch_size(self) -> int:
        """Samples in a batch; the last may have fewer."""
        return self.source.batch_size

    @property
    def device(self) -> torch.device:
        """The device of the batches."""
        return self.source.device

    def batches(self, order: np.ndarray, key: int | None, dtype: torch.dtype) -> Generator[Batch, None, None]:
        """Yield batches, see `fastpeer.data.stream.Source`."""
        for batch in self.source.batches(order, key, dtype):
            yield Batch(batch.images.contiguous(), batch.labels)


def _pair(value: object) -> tuple[Tensor, Tensor]:
    sides = tuple(value) if isinstance(value, (tuple, list)) else ()
    if len(sides) != 2 or not all(isinstance(side, Tensor) for side in sides):
        two = f"({', '.join(type(side).__name__ for side in sides)})"
        found = two if len(sides) == 2 else type(value).__name__
        raise UserError(f"data must be pairs of tensors (images, labels), got {found}")
    return sides[0], sides[1]


def _collected(data: object) -> list[tuple[Tensor, Tensor]]:
    if isinstance(data, Tensor) or not isinstance(data, Iterable):
        found = type(data).__name__
        raise UserError(f"data must be a folder, (images, labels) or batches of such pairs, got {found}")
    pairs = [_pair(one) for one in data]
    if not pairs:
        raise UserError("data must hold at least one batch, got none")
    return pairs


def _check(images: Tensor, labels: Tensor) -> None:
    if images.dim() != 4 or not images.is_floating_point() or not len(images):
        found = f"{tuple(images.shape)} of {str(images.dtype).removeprefix('torch.')}"
        raise UserError(f"images must be (N, C, H, W) of floating-point numbers in [0, 1], got {found}")
    low, high = images.min().item(), images.max().item()
    if not 0 <= low <= high <= 1:
        advice = "divide them by 255, or put their normalisation into the model"
        raise UserError(f"images must lie in [0, 1], got {low:g} to {high:g}: {advice}")
    whole = labels.shape == (len(images),) and not labels.is_floating_point()
    if not whole or labels.min() < 0:
        found = f"{tuple(labels.shape)} of {str(labels.dtype).removeprefix('torch.')}"
        found = str(labels.min().item()) if whole else found
        raise UserError(f"labels must be ({len(images)},) of whole numbers from 0, got {found}")
