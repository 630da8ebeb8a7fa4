"""Images that were decoded once and lie on the device that computes."""

import logging
from collections.abc import Callable, Generator
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from fastpeer.config import Residency
from fastpeer.data.beton import BetonLoader
from fastpeer.data.host import HostSource
from fastpeer.data.stream import Batch, Source
from fastpeer.errors import UserError
from fastpeer.kernels.crop_and_flip import crop_and_flip

log = logging.getLogger(__name__)
Gather = Callable[[Tensor, Tensor, int | None, torch.dtype], Tensor]
"""`fastpeer.kernels.crop_and_flip.crop_and_flip`, or a faster version of it."""

FREE_PART = 4
"""Automatically, images take up to one part in so many of the memory that is free."""


@dataclass(frozen=True)
class ResidentSource:
    """A whole split on its device.

    Args:
        images: uint8 (N, H, W, 3), contiguous.
        targets: labels int64 (N,), on the images' device.
        labels: the same on the host.
        batch_size: samples in a batch; the last may hold fewer.
        gather: takes a batch out of the images.
    """

    images: Tensor
    targets: Tensor
    labels: np.ndarray
    batch_size: int
    gather: Gather = crop_and_flip

    @property
    def device(self) -> torch.device:
        """Where the images are."""
        return self.images.device

    def batches(self, order: np.ndarray, key: int | None, dtype: torch.dtype) -> Generator[Batch, None, None]:
        """See `fastpeer.data.stream.Source`."""
        samples = torch.from_numpy(order.astype(np.int64)).to(self.device)
        for first in range(0, len(samples), self.batch_size):
            indices = samples[first : first + self.batch_size]
            yield Batch(self.gather(self.images, indices, key, dtype), self.targets[indices])


def open_source(
    loader: BetonLoader,
    size: tuple[int, int],
    device: torch.device,
    residency: Residency,
    gather: Gather = crop_and_flip,
) -> Source:
    """Return a split's images from where they are to lie; on the device, they are all decoded first.

    Args:
        loader: of the split.
        size: height and width of its images.
        device: where the batches are wanted.
        residency: auto is the device where that is a GPU with room for four times as much.
        gather: see `ResidentSource`.

    Raises:
        UserError: no room on the device that was insisted on.
    """
    if not loader.one_size:
        if residency == "device":
            log.warning("%s: JPEGs are decoded anew for each batch, so they stay on the host", loader.path)
        return HostSource(loader, device)
    needed = len(loader.labels) * size[0] * size[1] * 3
    if residency == "host" or (residency == "auto" and not _has_room(device, needed)):
        return HostSource(loader, device)
    try:
        return _decoded(loader, size, device, gather)
    except RuntimeError as error:
        _refuse_unless_memory(error, needed, residency)
    room = _gigabytes(needed)
    log.warning("the device had no room for the %s of %s: they stay on the host", room, loader.path)
    return HostSource(loader, device)


def _decoded(
    loader: BetonLoader, size: tuple[int, int], device: torch.device, gather: Gather
) -> ResidentSource:
    labels = loader.labels.astype(np.int64)
    images = torch.empty((len(labels), *size, 3), dtype=torch.uint8, device=device)
    filled = 0
    for some, _ in loader.batches(np.arange(len(labels))):
        images[filled : filled + len(some)] = some.permute(0, 2, 3, 1)
        filled += len(some)
    return ResidentSource(images, torch.from_numpy(labels).to(device), labels, loader.batch_size, gather)


def _has_room(device: torch.device, needed: int) -> bool:
    if device.type != "cuda":
        return False
    free, _ = torch.cuda.mem_get_info(device)
    if FREE_PART * needed <= free:
        return True
    found = _gigabytes(needed), _gigabytes(free)
    log.warning("images of %s stay on the host: the device has %s free", *found)
    return False


def _refuse_unless_memory(error: RuntimeError, needed: int, residency: Residency) -> None:
    """Pass on an error, as a UserError if it is one of memory that was insisted on."""
    # On a CPU it is a RuntimeError like any other.
    if not isinstance(error, torch.OutOfMemoryError) and "can't allocate memory" not in str(error):
        raise error
    if residency == "device":
        raise UserError(
            f"the device has no room for {_gigabytes(needed)} of images: use --data.residency host"
        ) from None


def _gigabytes(count: int) -> str:
    return f"{count / 1e9:.2f} GB"
