"""Copying batches to the device while it computes."""

import threading
from contextlib import closing

import numpy as np
import pytest
import torch

from fastpeer.data.beton import BetonLoader
from fastpeer.data.host import HostSource
from fastpeer.data.prefetch import Decoded, Staging, one_ahead, uploader
from fastpeer.data.stream import Batch, TrainingStream

CPU = torch.device("cpu")


def decoded(size, seed=0):
    random = torch.Generator().manual_seed(seed)
    images = torch.randint(0, 256, (size, 3, 4, 5), dtype=torch.uint8, generator=random)
    indices = torch.randint(0, 10, (2, size), generator=random)
    return Decoded(images.to(memory_format=torch.channels_last), *indices)


@pytest.mark.parametrize("count", range(5))
def test_every_item_is_yielded_in_order_after_the_next_was_taken(count):
    events = []

    def items():
        for number in range(count):
            events.append(("launched", number))
            yield number

    for number in one_ahead(items()):
        events.append(("taken", number))
    launched = [("launched", number) for number in range(count)]
    taken = [("taken", number) for number in range(count)]
    assert [event for event in events if event[0] == "launched"] == launched
    assert [event for event in events if event[0] == "taken"] == taken
    for number in range(count - 1):
        assert events.index(("taken", number)) == events.index(("launched", number + 1)) + 1


def test_one_ahead_left_early_closes_its_source():
    closed = []

    def items():
        try:
            yield from range(10)
        finally:
            closed.append(True)

    with closing(one_ahead(items())) as ahead:
        assert next(ahead) == 0
    assert closed == [True]


def test_errors_reach_the_consumer():
    def items():
        yield 0
        raise OSError("gone")

    with pytest.raises(OSError, match="gone"):
        list(one_ahead(items()))


def test_on_a_cpu_each_batch_is_prepared_when_it_is_requested():
    prepared = []

    def prepare(batch):
        prepared.append(batch)
        return Batch(batch.images.float(), batch.labels)

    originals = [decoded(4, seed) for seed in range(3)]
    batches = uploader(CPU, 4)(originals, prepare)
    assert torch.equal(next(batches).labels, originals[0].labels)
    assert len(prepared) == 1
    assert len(list(batches)) == 2


def test_staging_memory_is_reused_for_batches_of_any_size():
    staging = Staging(4, pinned=False)
    copies = []
    for size in (3, 4, 1):
        original = decoded(size, seed=size)
        copy = staging.fill(original)
        copies.append(copy)
        assert all(torch.equal(ours, theirs) for ours, theirs in zip(copy, original, strict=True))
        assert copy.images.is_contiguous(memory_format=torch.channels_last)
    assert len({copy.images.data_ptr() for copy in copies}) == 1


@pytest.fixture(scope="module")
def loader(small_dataset):
    return BetonLoader(small_dataset / "train.beton", 8)


def stream(loader, device):
    source = HostSource(loader, device)
    return TrainingStream(source, np.arange(45), torch.float32, 0, True, True, False)


needs_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")


@pytest.mark.gpu
@needs_gpu
def test_on_a_gpu_batches_are_the_cpus_while_it_computes(loader):
    cuda = torch.device("cuda")
    busy = torch.randn(4096, 4096, device=cuda)
    ours, theirs = stream(loader, cuda), list(stream(loader, CPU).epoch(0))
    for _ in range(3):
        for batch, other in zip(ours.epoch(0), theirs, strict=True):
            # Fills freed memory with NaN, which shows in a batch that was freed while it was still in use.
            (busy @ busy).sum()
            torch.full_like(batch.images, torch.nan)
            assert torch.equal(batch.images.cpu(), other.images)
            assert torch.equal(batch.labels.cpu(), other.labels)


@pytest.mark.gpu
@needs_gpu
def test_on_a_gpu_no_thread_is_left_of_an_epoch_left_early(loader):
    before = threading.active_count()
    for _ in range(3):
        with closing(stream(loader, torch.device("cuda")).epoch(0)) as batches:
            next(batches)
    assert threading.active_count() == before
