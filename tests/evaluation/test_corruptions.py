"""Corrupted images in CIFAR-10-C's layout: what is read of them, and what is refused."""

import numpy as np
import pytest
import torch

from fastpeer.errors import UserError
from fastpeer.evaluation.corruption_sets import BENCHMARK, open_corruptions
from fastpeer.evaluation.corruptions import Corrupted, CorruptionResult

CLASSES = ("ant", "bee", "cat")
LABELS = np.array([0, 2, 1, 1])


@pytest.fixture
def folder(tmp_path):
    """Two corruptions of four images of 6x5 pixels."""
    images = np.random.default_rng(0).integers(0, 256, (20, 6, 5, 3), np.uint8)
    np.save(tmp_path / "labels.npy", np.tile(LABELS, 5))
    np.save(tmp_path / "spatter.npy", images[::-1].copy())
    np.save(tmp_path / "fog.npy", images)
    return tmp_path


def test_each_severity_is_its_own_fifth_of_the_file(folder):
    found = open_corruptions(folder, CLASSES, (6, 5))
    assert found.names == ("fog", "spatter")
    assert found.missing == [name for name in BENCHMARK if name != "fog"]
    pixels = np.load(folder / "fog.npy")
    for severity in (1, 5):
        source = found.images("fog", severity, 2, torch.device("cpu"))
        batches = list(source.batches(np.array([3, 0, 2]), None, torch.float32))
        assert [len(batch.labels) for batch in batches] == [2, 1]
        images = torch.cat([batch.images for batch in batches])
        expected = pixels[4 * (severity - 1) :][[3, 0, 2]].transpose(0, 3, 1, 2) / np.float32(255)
        assert (images.numpy() == expected).all()
        assert torch.cat([batch.labels for batch in batches]).tolist() == [1, 0, 1]


@pytest.mark.parametrize(
    ("name", "array", "words"),
    [
        ("labels", np.tile(LABELS, 4), "five times, once for each severity, got 16"),
        ("labels", np.arange(20) % 3, "five times"),
        ("labels", np.tile(LABELS, 5).astype(float), "whole numbers .5N,., got float64"),
        ("labels", np.tile(LABELS + 1, 5), "labels must be 0 to 2, of the data set's 3 classes, got 1 to 3"),
        ("fog", np.zeros((16, 6, 5, 3), np.uint8), "5 severities of 4 images, got uint8 .16, 6, 5, 3."),
        ("fog", np.zeros((20, 5, 6, 3), np.uint8), "must be uint8 .20, 6, 5, 3.,"),
        ("fog", np.zeros((20, 6, 5, 3), np.float32), "got float32"),
        ("fog", np.asfortranarray(np.zeros((20, 6, 5, 3), np.uint8)), "in Fortran's order"),
        ("fog", np.array([{}], object), "must be an array of numbers"),
    ],
)
def test_what_is_laid_out_otherwise_is_refused(folder, name, array, words):
    np.save(folder / f"{name}.npy", array, allow_pickle=True)
    with pytest.raises(UserError, match=words) as refused:
        open_corruptions(folder, CLASSES, (6, 5))
    assert f"{name}.npy" in str(refused.value)


@pytest.mark.parametrize("content", [b"", b"\x93NUMPY", b"PK\x03\x04", b"\x80\x04N."])
def test_what_is_no_array_is_refused(folder, content):
    (folder / "fog.npy").write_bytes(content)
    with pytest.raises(UserError, match=r"fog\.npy: must be an array of numbers"):
        open_corruptions(folder, CLASSES, (6, 5))


def test_what_is_missing_is_named(folder):
    (folder / "labels.npy").unlink()
    with pytest.raises(UserError, match=r"labels\.npy is missing"):
        open_corruptions(folder, CLASSES, (6, 5))
    with pytest.raises(UserError, match="no such folder"):
        open_corruptions(folder / "none", CLASSES, (6, 5))


def test_a_file_that_is_cut_short_while_it_is_read_is_an_error(folder):
    source = open_corruptions(folder, CLASSES, (6, 5)).images("fog", 5, 2, torch.device("cpu"))
    with (folder / "fog.npy").open("r+b") as file:
        file.truncate(400)
    with pytest.raises(UserError, match="cut short"):
        list(source.batches(np.arange(4), None, torch.float32))


def test_the_mean_is_over_severities_and_the_benchmark_s_corruptions():
    fog, spatter = (
        Corrupted("fog", "", (4, 3, 2, 1, 0), (0,) * 5),
        Corrupted("spatter", "", (4,) * 5, (0,) * 5),
    )
    result = CorruptionResult({}, "", 4, 4, (fog, spatter), (), 1.0)
    assert result.mean == 50.0
    assert result.entry()["mean_over"] == ["fog"]
    assert CorruptionResult({}, "", 4, 4, (spatter,), BENCHMARK, 1.0).mean == 100.0
