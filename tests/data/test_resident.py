"""Images kept on the device give the same batches as images on the host."""

from contextlib import closing

import numpy as np
import pytest
import torch

from fastpeer.data import resident
from fastpeer.data.beton import BetonLoader
from fastpeer.data.host import HostSource
from fastpeer.data.resident import ResidentSource, open_source
from fastpeer.data.stream import EvaluationStream, TrainingStream
from fastpeer.errors import UserError

CPU = torch.device("cpu")
IMAGES, SIZE = 45, (8, 8)
NEEDED = IMAGES * 8 * 8 * 3


@pytest.fixture(scope="module")
def loader(small_dataset):
    return BetonLoader(small_dataset / "train.beton", 8)


@pytest.fixture(scope="module")
def sources(loader):
    return [open_source(loader, SIZE, CPU, residency) for residency in ("host", "device")]


def assert_same(ours, theirs):
    assert len(ours) == len(theirs)
    for batch, other in zip(ours, theirs, strict=True):
        for tensor, expected in ((batch.images, other.images), (batch.labels, other.labels)):
            assert torch.equal(tensor, expected)
            assert (tensor.dtype, tensor.stride()) == (expected.dtype, expected.stride())


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("drop_last", [True, False])
@pytest.mark.parametrize(("augment", "shuffle"), [(True, True), (True, False), (False, True)])
@pytest.mark.parametrize("first", [0, 3])
def test_epochs_are_the_hosts_bit_for_bit(sources, augment, shuffle, drop_last, dtype, first):
    used = np.delete(np.arange(IMAGES), [0, 7, 44])
    host, device = (TrainingStream(source, used, dtype, 3, augment, shuffle, drop_last) for source in sources)
    for epoch, purpose in ((0, "train"), (2, "averaging")):
        ours, theirs = (list(stream.epoch(epoch, first, purpose)) for stream in (device, host))
        assert_same(ours, theirs)
    assert host.steps_per_epoch == device.steps_per_epoch == len(theirs) + first


@pytest.mark.parametrize("indices", [np.arange(IMAGES), np.array([3, 4, 10, 44]), np.array([], dtype=int)])
def test_evaluation_is_the_hosts_bit_for_bit(sources, indices):
    host, device = (EvaluationStream(source, indices, torch.float32) for source in sources)
    assert_same(list(device), list(host))
    assert host.device == device.device == CPU


def test_labels_are_the_files(sources, loader):
    for source in sources:
        assert np.array_equal(source.labels, loader.labels)
        assert source.batch_size == 8


def test_epoch_can_be_left_early(sources):
    stream = TrainingStream(sources[1], np.arange(IMAGES), torch.float32, 0, True, True, False)
    with closing(stream.epoch(0)) as batches:
        assert len(next(batches).images) == 8


class FakeGpu:
    """A device that `_has_room` takes for a GPU."""

    type = "cuda"


def test_auto_keeps_images_on_the_host_of_a_cpu_without_a_log_line(loader, logged):
    assert isinstance(open_source(loader, SIZE, CPU, "auto"), HostSource)
    assert logged == []


@pytest.mark.parametrize(("free", "enough"), [(4 * NEEDED, True), (4 * NEEDED - 1, False)])
def test_auto_takes_up_to_a_quarter_of_a_gpus_free_memory(monkeypatch, free, enough, logged):
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (free, 10 * free))
    assert resident._has_room(FakeGpu(), NEEDED) == enough
    assert len(logged) == (0 if enough else 1)


@pytest.fixture(
    params=[
        torch.OutOfMemoryError("CUDA out of memory"),
        RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 1 bytes"),
    ],
    ids=["GPU", "CPU"],
)
def full(request, monkeypatch):
    def empty(*_, **__):
        raise request.param

    monkeypatch.setattr(torch, "empty", empty)


def test_device_without_room_is_refused_in_one_line(full, loader):
    with pytest.raises(
        UserError, match=r"no room for 0\.00 GB of images: use --data\.residency host"
    ) as refusal:
        open_source(loader, SIZE, CPU, "device")
    assert "\n" not in str(refusal.value)


def test_auto_falls_back_to_the_host_with_one_warning(full, loader, monkeypatch, logged):
    monkeypatch.setattr(resident, "_has_room", lambda *_: True)
    assert isinstance(open_source(loader, SIZE, CPU, "auto"), HostSource)
    (line,) = logged
    assert "stay on the host" in line


@pytest.mark.parametrize("residency", ["device", "auto"])
def test_other_errors_are_raised_unchanged(loader, monkeypatch, residency):
    def broken(*_):
        raise RuntimeError("broken")

    monkeypatch.setattr(resident, "_has_room", lambda *_: True)
    monkeypatch.setattr(resident, "_decoded", broken)
    with pytest.raises(RuntimeError, match="broken"):
        open_source(loader, SIZE, CPU, residency)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("fused", [True, False])
def test_on_a_gpu_images_are_kept_there_with_the_same_batches(loader, sources, fused):
    from fastpeer.kernels.crop_and_flip import crop_and_flip
    from fastpeer.kernels.fused.crop_and_flip import crop_and_flip as triton_version

    gather = triton_version if fused else crop_and_flip
    source = open_source(loader, SIZE, torch.device("cuda"), "auto", gather)
    assert isinstance(source, ResidentSource)
    ours, theirs = (
        list(TrainingStream(images, np.arange(IMAGES), torch.float32, 0, True, True, False).epoch(1))
        for images in (source, sources[0])
    )
    assert_same([type(batch)(batch.images.cpu(), batch.labels.cpu()) for batch in ours], theirs)
