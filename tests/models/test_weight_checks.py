"""Files that hold something else in place of weights are refused by the tensor's name, in bounded time."""

import json
import zipfile

import pytest
import torch
from safetensors.torch import save_file

from fastpeer.errors import UserError
from fastpeer.models import build_model
from fastpeer.models.weights import load_weights, recorded_normalization

NAME = "linear.weight"


@pytest.fixture(scope="module")
def weights():
    return build_model("resnet8", 10).state_dict()


def refused(path, *words):
    network = build_model("resnet8", 10)
    before = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    with pytest.raises(UserError) as refusal:
        load_weights(network, path)
    text = str(refusal.value)
    assert "\n" not in text
    assert all(word in text for word in (str(path), *words)), text
    assert all(torch.equal(tensor, before[name]) for name, tensor in network.state_dict().items())


def sparse(tensor):
    return tensor.to_sparse()


def quantised(tensor):
    return torch.quantize_per_tensor(tensor, 0.1, 0, torch.qint8)


def one_number_for_many(tensor):
    return torch.zeros(1).expand(10**7, 10**6)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda tensor: tensor * float("nan"), "NaN or infinity"),
        (lambda tensor: tensor / 0, "NaN or infinity"),
        (lambda tensor: tensor.long(), "got int64"),
        (lambda tensor: tensor > 0, "got bool"),
        (lambda tensor: tensor + 1j, "which is complex"),
        (lambda tensor: tensor.to("meta"), "which is on the meta device"),
        (sparse, "which is sparse (sparse_coo)"),
        (quantised, "which is quantised"),
        (one_number_for_many, "of 10,000,000,000,000 numbers on 4 bytes"),
    ],
)
# PyTorch warns that quantised tensors are going to be removed.
@pytest.mark.filterwarnings("ignore")
def test_what_is_no_weight_is_refused_by_name(tmp_path, weights, change, words):
    torch.save({**weights, NAME: change(weights[NAME])}, tmp_path / "w.pth")
    refused(tmp_path / "w.pth", NAME, words)


def test_counters_of_batches_may_be_averages_but_no_truth_values(tmp_path, weights):
    counter = "bn1.num_batches_tracked"
    torch.save({**weights, counter: torch.tensor(3.0)}, tmp_path / "w.pth")
    load_weights(build_model("resnet8", 10), tmp_path / "w.pth")
    torch.save({**weights, counter: torch.tensor(True)}, tmp_path / "w.pth")
    refused(tmp_path / "w.pth", counter, "got bool")


def endless(weights):
    content = {"state_dict": weights}
    content["again"] = content
    return content


def doubling(weights):
    content = weights
    for _ in range(15):
        content = {"a": content, "b": content}
    return content


@pytest.mark.parametrize("made", [endless, doubling])
def test_dictionaries_without_end_are_refused(tmp_path, weights, made):
    torch.save(made(weights), tmp_path / "w.pth")
    refused(tmp_path / "w.pth", "endlessly")


def test_archive_that_unpacks_to_far_more_is_not_unpacked(tmp_path, weights):
    torch.save(weights, tmp_path / "w.pth")
    with zipfile.ZipFile(tmp_path / "w.pth", "a", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("w/data/999", bytes(1 << 27))
    refused(tmp_path / "w.pth", "would unpack from")


def test_archive_that_cannot_be_listed_is_not_loaded(tmp_path, weights):
    torch.save(weights, tmp_path / "w.pth")
    data = bytearray((tmp_path / "w.pth").read_bytes())
    listed = data.rindex(b"PK\x01\x02")
    # Its name is said to be UTF-8, and is not; PyTorch's own reader would not mind.
    data[listed + 9] |= 0x08
    data[listed + 46] = 0xFF
    (tmp_path / "w.pth").write_bytes(data)
    refused(tmp_path / "w.pth", "damaged or not a checkpoint; not loaded")


@pytest.mark.parametrize(
    ("mean", "std"),
    [
        ([0.5], [0]),
        ([0.5], [-1]),
        ([0.5, 0.5], [1, 1]),
        ([0.5] * 3, [1]),
        ([float("nan")], [1]),
        ([0.5], [float("inf")]),
        (["x"], [1]),
        (None, [1]),
        ([], [1]),
    ],
)
def test_normalisation_that_is_none_is_refused(tmp_path, weights, mean, std):
    path = tmp_path / "w.safetensors"
    recorded = {"fastpeer.mean": json.dumps(mean), "fastpeer.std": json.dumps(std)}
    save_file(weights, path, recorded)
    refused(path, "records a normalisation that is none")
    with pytest.raises(UserError, match="records a normalisation that is none"):
        recorded_normalization(path, "resnet8")
    save_file(weights, path, {"fastpeer.mean": "[0.5]"})
    refused(path, "records a normalisation without")


def test_std_of_zero_among_the_weights_is_refused(tmp_path, weights):
    torch.save({**weights, "mean": torch.zeros(3), "std": torch.zeros(3)}, tmp_path / "w.pth")
    with pytest.raises(UserError, match="std must be above 0"):
        recorded_normalization(tmp_path / "w.pth", "resnet8")


def test_metadata_nested_without_end_are_refused(tmp_path, weights):
    path = tmp_path / "w.safetensors"
    save_file(weights, path, {"fastpeer.network": "[" * 100_000, "fastpeer.mean": "[" * 100_000})
    refused(path, "records a normalisation that is none")
