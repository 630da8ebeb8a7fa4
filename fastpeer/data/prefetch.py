"""Decoded batches on their way to the device: on CUDA, each travels while the one before is computed with."""

import itertools
from collections.abc import Callable, Generator, Iterable
from typing import NamedTuple, Protocol, TypeVar

import torch
from torch import Tensor

from fastpeer.data.stream import Batch
from fastpeer.device import new_stream

T = TypeVar("T")


class Decoded(NamedTuple):
    """Images uint8 (B, 3, H, W), channels-last, labels int64 (B,) and sample indices int64 (B,)."""

    images: Tensor
    labels: Tensor
    indices: Tensor

    def to(self, device: torch.device) -> "Decoded":
        """Copy to a device; from pinned memory, the host does not wait."""
        return Decoded(*(one.to(device, non_blocking=True) for one in self))


Prepare = Callable[[Decoded], Batch]
"""Turns a decoded batch that is on the device into one that shares no memory with it."""


class Upload(Protocol):
    """Brings decoded batches to a device."""

    def __call__(self, decoded: Iterable[Decoded], prepare: Prepare) -> Generator[Batch, None, None]:
        """Yield each batch, prepared there."""


def uploader(device: torch.device, batch_size: int) -> Upload:
    """Return what brings batches of at most `batch_size` samples to the device: on a CPU, nothing moves."""
    return SideStream(device, batch_size) if device.type == "cuda" else prepared


def prepared(decoded: Iterable[Decoded], prepare: Prepare) -> Generator[Batch, None, None]:
    """Yield each batch, prepared where it lies."""
    for one in decoded:
        yield prepare(one)


class SideStream:
    """Copies batches to a CUDA device and prepares them there on a stream of its own.

    Args:
        device: the GPU.
        batch_size: samples in a batch, at most.
    """

    def __init__(self, device: torch.device, batch_size: int) -> None:
        self._device = device
        self._stream = new_stream(device)
        # Two, so that one is filled while the other is still being copied.
        self._staging = itertools.cycle([_PinnedBatch(batch_size), _PinnedBatch(batch_size)])

    def __call__(self, decoded: Iterable[Decoded], prepare: Prepare) -> Generator[Batch, None, None]:
        """Yield each batch once the next one is on its way."""
        for batch, ready in one_ahead(self._launched(one, prepare) for one in decoded):
            stream = torch.cuda.current_stream(self._device)
            stream.wait_event(ready)
            # Allocated on the side stream, whose next batch must not get this memory before `stream` is done.
            batch.images.record_stream(stream)
            batch.labels.record_stream(stream)
            yield batch

    def _launched(self, decoded: Decoded, prepare: Prepare) -> tuple[Batch, torch.cuda.Event]:
        with torch.cuda.stream(self._stream):
            batch = prepare(next(self._staging).copied(decoded, self._device))
            return batch, self._stream.record_event()


def one_ahead(items: Iterable[T]) -> Generator[T, None, None]:
    """Yield each item after the next one was taken."""
    iterator = iter(items)
    for waiting in iterator:
        for following in iterator:
            yield waiting
            waiting = following
        yield waiting


class Staging:
    """Memory on the host that a batch is kept in, one after another.

    Args:
        batch_size: samples in a batch, at most.
        pinned: page-locked, which CUDA copies from without the host.
    """

    def __init__(self, batch_size: int, pinned: bool) -> None:
        self._batch_size = batch_size
        self._pinned = pinned
        self._memory: Decoded | None = None

    def filled(self, decoded: Decoded) -> Decoded:
        """Copy a batch, and return the copy: it lasts until the next."""
        if self._memory is None:
            self._memory = Decoded(*(self._like(one) for one in decoded))
        copy = Decoded(*(one[: len(decoded.labels)] for one in self._memory))
        for target, source in zip(copy, decoded, strict=True):
            target.copy_(source)
        return copy

    def _like(self, one: Tensor) -> Tensor:
        layout = torch.channels_last if one.dim() == 4 else torch.contiguous_format
        shape = (self._batch_size, *one.shape[1:])
        # In its layout from the start: a converted copy would not be pinned.
        return torch.empty(shape, dtype=one.dtype, memory_format=layout, pin_memory=self._pinned)


class _PinnedBatch:
    """Pinned memory, and the event after which its last copy to the device has been read from it."""

    def __init__(self, batch_size: int) -> None:
        self._staging = Staging(batch_size, pinned=True)
        self._read = torch.cuda.Event()  # type: ignore[no-untyped-call]

    def copied(self, decoded: Decoded, device: torch.device) -> Decoded:
        """Copy to the device on the current stream; only the host's own part is waited for."""
        self._read.synchronize()
        on_device = self._staging.filled(decoded).to(device)
        self._read.record()
        return on_device
