"""Copying decoded batches to the device: on CUDA, while the device computes on the batch before."""

import itertools
from collections.abc import Callable, Generator, Iterable
from typing import NamedTuple, Protocol, TypeVar

import torch
from torch import Tensor

from fastpeer.data.stream import Batch
from fastpeer.device import new_stream

T = TypeVar("T")


class Decoded(NamedTuple):
    """A decoded batch: images uint8 (B, 3, H, W), channels-last, labels and sample indices int64 (B,)."""

    images: Tensor
    labels: Tensor
    indices: Tensor

    def to(self, device: torch.device) -> "Decoded":
        """Copy to a device; from pinned memory the copy is asynchronous."""
        return Decoded(*(tensor.to(device, non_blocking=True) for tensor in self))


Prepare = Callable[[Decoded], Batch]
"""Turns a decoded batch on the device into a `Batch` that shares no memory with it."""


class Upload(Protocol):
    """Copies decoded batches to a device and prepares them there."""

    def __call__(self, decoded: Iterable[Decoded], prepare: Prepare) -> Generator[Batch, None, None]:
        """Yield the prepared batches, in order."""


def uploader(device: torch.device, batch_size: int) -> Upload:
    """Return the upload for batches of at most `batch_size` samples; on a CPU nothing is copied."""
    return SideStream(device, batch_size) if device.type == "cuda" else prepared


def prepared(decoded: Iterable[Decoded], prepare: Prepare) -> Generator[Batch, None, None]:
    """Yield the batches, each prepared when it is requested: the upload to a CPU."""
    for batch in decoded:
        yield prepare(batch)


class SideStream:
    """Copies batches to a CUDA device and prepares them there on a side stream: the upload to a GPU.

    Args:
        device: the CUDA device.
        batch_size: largest number of samples in a batch.
    """

    def __init__(self, device: torch.device, batch_size: int) -> None:
        self._device = device
        self._stream = new_stream(device)
        # Two, so that the host fills one while the other is still being copied to the device.
        self._staging = itertools.cycle([_PinnedBatch(batch_size), _PinnedBatch(batch_size)])

    def __call__(self, decoded: Iterable[Decoded], prepare: Prepare) -> Generator[Batch, None, None]:
        """Yield each batch after the upload of the next one has been launched."""
        for batch, ready in one_ahead(self._launch(batch, prepare) for batch in decoded):
            stream = torch.cuda.current_stream(self._device)
            # The device waits, not the host.
            stream.wait_event(ready)
            # The memory was allocated on the side stream: without this, the allocator would give it to a
            # later batch there as soon as it is freed here, although `stream` may still read it.
            batch.images.record_stream(stream)
            batch.labels.record_stream(stream)
            yield batch

    def _launch(self, decoded: Decoded, prepare: Prepare) -> tuple[Batch, torch.cuda.Event]:
        with torch.cuda.stream(self._stream):
            batch = prepare(next(self._staging).copy_to(self._device, decoded))
            return batch, self._stream.record_event()


def one_ahead(items: Iterable[T]) -> Generator[T, None, None]:
    """Yield each item after the next one was taken from `items`."""
    iterator = iter(items)
    for current in iterator:
        # Takes all further items; only then the outer loop ends, with the last one still to yield.
        for following in iterator:
            yield current
            current = following
        yield current


class Staging:
    """A buffer on the host for one batch, reused for all batches.

    Args:
        batch_size: largest number of samples in a batch.
        pinned: whether the memory is page-locked, as asynchronous copies to CUDA require.
    """

    def __init__(self, batch_size: int, pinned: bool) -> None:
        self._batch_size = batch_size
        self._pinned = pinned
        self._memory: Decoded | None = None

    def fill(self, decoded: Decoded) -> Decoded:
        """Copy a batch into the buffer and return the copy, which is valid until the next call."""
        # Allocated at the first batch, which gives the images' size.
        if self._memory is None:
            self._memory = Decoded(*(self._allocate_for(tensor) for tensor in decoded))
        copy = Decoded(*(tensor[: len(decoded.labels)] for tensor in self._memory))
        for target, source in zip(copy, decoded, strict=True):
            target.copy_(source)
        return copy

    def _allocate_for(self, sample: Tensor) -> Tensor:
        layout = torch.channels_last if sample.dim() == 4 else torch.contiguous_format
        shape = (self._batch_size, *sample.shape[1:])
        # Allocated in its final memory format: a later conversion would return memory that is not pinned.
        return torch.empty(shape, dtype=sample.dtype, memory_format=layout, pin_memory=self._pinned)


class _PinnedBatch:
    """A pinned buffer, and the event that is reached when its last copy to the device is complete."""

    def __init__(self, batch_size: int) -> None:
        self._staging = Staging(batch_size, pinned=True)
        self._copied = torch.cuda.Event()  # type: ignore[no-untyped-call]

    def copy_to(self, device: torch.device, decoded: Decoded) -> Decoded:
        """Copy a batch to the device on the current stream, asynchronously after the copy into the buffer."""
        # The copy before must have left the buffer; an event that was never recorded counts as reached.
        self._copied.synchronize()
        on_device = self._staging.fill(decoded).to(device)
        self._copied.record()
        return on_device
