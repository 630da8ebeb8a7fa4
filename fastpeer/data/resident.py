"""A source of batches whose images were decoded once and stay on the device that computes."""

import logging
from collections.abc import Callable, Generator
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from fastpeer.config import Residency
from fastpeer.data.host import HostSource
from fastpeer.data.loader import Loader
from fastpeer.data.stream import Batch, Source
from fastpeer.errors import UserError
from fastpeer.kernels.crop_and_flip import crop_and_flip

log = logging.getLogger(__name__)
Gather = Callable[[Tensor, Tensor, int | None, torch.dtype], Tensor]
"""`fastpeer.kernels.crop_and_flip.crop_and_flip`, or a faster version of it."""

MEMORY_FACTOR = 4
"""With residency auto, the device's free memory must be at least this multiple of the images' size."""


@dataclass(frozen=True)
class ResidentSource:
    """A whole split on the device.

    Args:
        images: uint8 (N, H, W, 3), contiguous.
        targets: labels int64 (N,), on the images' device.
        labels: the same labels on the host.
        batch_size: samples in a batch; the last may have fewer.
        gather: gathers, augments and converts a batch of the images.
    """

    images: Tensor
    targets: Tensor
    labels: np.ndarray
    batch_size: int
    gather: Gather = crop_and_flip

    @property
    def device(self) -> torch.device:
        """The device of the images and batches."""
        return self.images.device

    def batches(self, order: np.ndarray, key: int | None, dtype: torch.dtype) -> Generator[Batch, None, None]:
        """Yield batches, see `fastpeer.data.stream.Source`."""
        # Copied once for the whole epoch; slicing it costs no further transfer.
        samples = torch.from_numpy(order.astype(np.int64)).to(self.device)
        for first in range(0, len(samples), self.batch_size):
            indices = samples[first : first + self.batch_size]
            yield Batch(self.gather(self.images, indices, key, dtype), self.targets[indices])


def open_source(
    loader: Loader,
    size: tuple[int, int],
    device: torch.device,
    residency: Residency,
    gather: Gather = crop_and_flip,
) -> Source:
    """Return a source of a split's batches, with the images on the device or on the host.

    Images for the device are decoded here, all at once. JPEGs always stay on the host.

    Args:
        loader: the split's loader.
        size: height and width of its images.
        device: the device of the batches.
        residency: host; device; or auto, which is device on a GPU whose free memory is at least four times
            the images' size.
        gather: see `ResidentSource`.

    Raises:
        UserError: residency is device, and the device lacks the memory.
    """
    if not loader.one_size:
        if residency == "device":
            log.warning("%s: JPEGs are decoded again for each batch, so they stay on the host", loader.path)
        return HostSource(loader, device)
    needed = len(loader.labels) * size[0] * size[1] * 3
    if residency == "host" or (residency == "auto" and not _has_room(device, needed)):
        return HostSource(loader, device)
    try:
        return _decoded(loader, size, device, gather)
    except RuntimeError as error:
        _reraise_unless_memory(error, needed, residency)
    # Other processes may have taken the memory since it was found to be free.
    log.warning("the device has no room for %s of %s: they stay on the host", _gigabytes(needed), loader.path)
    return HostSource(loader, device)


def _decoded(loader: Loader, size: tuple[int, int], device: torch.device, gather: Gather) -> ResidentSource:
    labels = loader.labels.astype(np.int64)
    images = torch.empty((len(labels), *size, 3), dtype=torch.uint8, device=device)
    filled = 0
    for batch, _ in loader.batches(np.arange(len(labels))):
        images[filled : filled + len(batch)] = batch.permute(0, 2, 3, 1)
        filled += len(batch)
    return ResidentSource(images, torch.from_numpy(labels).to(device), labels, loader.batch_size, gather)


def _has_room(device: torch.device, needed: int) -> bool:
    if device.type != "cuda":
        return False
    free, _ = torch.cuda.mem_get_info(device)
    if MEMORY_FACTOR * needed <= free:
        return True
    sizes = _gigabytes(needed), _gigabytes(MEMORY_FACTOR * needed), _gigabytes(free)
    log.warning("images of %s stay on the host: the device must have %s free, got %s", *sizes)
    return False


def _reraise_unless_memory(error: RuntimeError, needed: int, residency: Residency) -> None:
    """Raise an error again unless it means that memory is full and residency leaves a choice."""
    # On a CPU, PyTorch raises a plain RuntimeError.
    if not isinstance(error, torch.OutOfMemoryError) and "can't allocate memory" not in str(error):
        raise error
    if residency == "device":
        raise UserError(
            f"the device has no room for {_gigabytes(needed)} of images: use --data.residency host"
        ) from None


def _gigabytes(num_bytes: int) -> str:
    return f"{num_bytes / 1e9:.2f} GB"
