"""The error message when the device runs out of memory."""

import pytest
import torch

from fastpeer.data.stream import Batch
from fastpeer.training.memory import largest_batch, out_of_memory


def test_largest_batch_is_extrapolated_from_two_small_ones():
    measured = []

    def measure(images):
        measured.append(images)
        return 1000 + 10 * images

    assert largest_batch(measure, (8, 16), 2000) == 100
    assert measured == [8, 16]


@pytest.mark.parametrize("capacity", [0, 500])
def test_no_batch_fits_if_the_networks_alone_do_not(capacity):
    assert largest_batch(lambda images: 1000 + 10 * images, (8, 16), capacity) == 0


class Step:
    device = torch.device("cpu")


def test_nothing_is_measured_without_cuda():
    batch = Batch(torch.rand(4, 3, 8, 8), torch.arange(4))
    expected = "the device has too little memory for a step of 4 images: lower --train.batch_size"
    assert out_of_memory(Step(), batch) == expected


def test_fitting_batch_size_is_named(monkeypatch):
    monkeypatch.setattr("fastpeer.training.memory._fitting_batch", lambda step, batch: 3)
    monkeypatch.setattr(Step, "device", torch.device("cuda"))
    batch = Batch(torch.rand(4, 3, 8, 8), torch.arange(4))
    assert out_of_memory(Step(), batch).endswith("a step of 4 images, about 3 fit: lower --train.batch_size")
