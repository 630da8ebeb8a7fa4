"""Weight files written by other repositories."""

import os

import pytest
import torch
from torch import nn

from fastpeer.errors import UserError
from fastpeer.models import build_model
from fastpeer.models.weights import load_weights, recorded_normalization, save_weights

MEAN, STD = (0.4914, 0.4822, 0.4465), (0.2471, 0.2435, 0.2616)


def network(name="resnet8", seed=0, **numbers):
    torch.manual_seed(seed)
    return build_model(name, 10, **numbers)


def prefixed(prefix, weights):
    return {prefix + name: tensor for name, tensor in weights.items()}


def numbers(mean="mean", std="std", shape=(1, 3, 1, 1)):
    return {mean: torch.tensor(MEAN).view(shape), std: torch.tensor(STD).view(shape)}


def renamed(weights, old, new):
    return {name.replace(old, new): tensor for name, tensor in weights.items()}


def attacked(weights):
    """Name weights as a library does whose attacker holds a second copy of the network."""
    own = prefixed("module.model.", weights) | numbers(
        "module.normalizer.new_mean", "module.normalizer.new_std"
    )
    copies = prefixed("module.attacker.model.", weights)
    return own | copies | numbers("module.attacker.normalize.new_mean", "module.attacker.normalize.new_std")


NORMALIZED = {
    "mu and sigma": lambda w: w | numbers("mu", "sigma"),
    "mean and std": lambda w: prefixed("module.", w | numbers(shape=(3, 1, 1))),
    "normalize": lambda w: prefixed("model.", w) | numbers("normalize.mean", "normalize.std"),
    "normalizer": lambda w: w | numbers("normalizer.mean", "normalizer.std"),
    "a sequence": lambda w: prefixed("1.", w) | numbers("0.mean", "0.std", shape=(3,)),
    "a sequence in parallel": lambda w: prefixed("module.", prefixed("1.", w) | numbers("0.mean", "0.std")),
    "an attacker": attacked,
}
PLAIN = {
    "model": lambda w: prefixed("model.", w),
    "several levels": lambda w: prefixed("module.backbone.net.", w),
    "model_state_dict": lambda w: {"model_state_dict": w, "epoch": 3},
    "nested": lambda w: {"state_dict": {"net": prefixed("module.", w)}, "best": 1.0},
    "classifier": lambda w: renamed(w, "linear.", "fc."),
    "no counters": lambda w: {name: tensor for name, tensor in w.items() if "num_batches" not in name},
}


def assert_loads(target, path, source):
    load_weights(target, path)
    torch.testing.assert_close(list(target.parameters()), list(source.parameters()), rtol=0, atol=0)
    statistics, expected = (
        [buffer for buffer in network.buffers() if buffer.dim() == 1] for network in (target, source)
    )
    torch.testing.assert_close(statistics, expected, rtol=0, atol=0)


def with_random_statistics(source):
    for module in source.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.running_mean)
            nn.init.uniform_(module.running_var)
    return source


@pytest.mark.parametrize("kind", PLAIN)
def test_other_names_load(tmp_path, kind):
    source, path = with_random_statistics(network()), tmp_path / "w.pth"
    torch.save(PLAIN[kind](source.state_dict()), path)
    assert_loads(network(seed=1), path, source)
    assert recorded_normalization(path, "resnet8") is None


@pytest.mark.parametrize("kind", NORMALIZED)
def test_recorded_normalisation_is_read_and_required(tmp_path, kind):
    source, path = with_random_statistics(network()), tmp_path / "w.pt"
    torch.save(NORMALIZED[kind](source.state_dict()), path)
    assert recorded_normalization(path, "resnet8") == (MEAN, STD)
    target = network(seed=1, mean=MEAN, std=STD)
    assert_loads(target, path, source)
    with pytest.raises(UserError, match=r"normalises images itself \(mean 0.4914 0.4822 0.4465 and std"):
        load_weights(network(seed=1), path)


def test_normalisation_in_the_metadata_is_required_too(tmp_path):
    path = tmp_path / "w.safetensors"
    save_weights(network(mean=(0.5,), std=(0.25,)), path)
    with pytest.raises(UserError, match=r"\(mean 0.5 and std 0.25\), this one does not: set mean and std"):
        load_weights(network(seed=1), path)


def test_normalisations_that_differ_are_not_used(tmp_path):
    path = tmp_path / "w.pth"
    torch.save(network().state_dict() | numbers() | {"mu": torch.ones(3), "sigma": torch.ones(3)}, path)
    assert recorded_normalization(path, "resnet8") is None
    with pytest.raises(UserError, match="normalises images itself"):
        load_weights(network(), path)


class OwnNumbers(nn.Module):
    """A class of the user's own that normalises by buffers of its own."""

    def __init__(self, num_classes):
        super().__init__()
        self.register_buffer("mean", torch.zeros(1, 3, 1, 1))
        self.register_buffer("std", torch.ones(1, 3, 1, 1))
        self.network = build_model("resnet8", num_classes)

    def forward(self, x):
        return self.network((x - self.mean) / self.std)


def test_own_classes_load_mean_and_std_themselves(tmp_path):
    source, path = OwnNumbers(10), tmp_path / "w.pth"
    source.mean.fill_(0.5)
    torch.save({"state_dict": prefixed("module.", source.state_dict())}, path)
    assert recorded_normalization(path, "nets:OwnNumbers") is None
    target = OwnNumbers(10)
    load_weights(target, path)
    torch.testing.assert_close(target.state_dict(), source.state_dict(), rtol=0, atol=0)


def test_released_wide_resnet_has_a_block_that_never_runs(tmp_path):
    source, path = with_random_statistics(network("wideresnet10x2")), tmp_path / "w.pt"
    weights = source.state_dict()
    unused = {
        name.replace("block1.", "sub_block1."): tensor + 1
        for name, tensor in weights.items()
        if "block1." in name
    }
    torch.save(prefixed("module.", weights | unused), path)
    assert_loads(network("wideresnet10x2", seed=1), path, source)


@pytest.mark.parametrize(
    "edit",
    [
        lambda w: prefixed("model.", w) | {"other.weight": torch.ones(2)},
        lambda w: w | {"sub_block2.layer.0.bn1.weight": torch.ones(2)},
        lambda w: {name: tensor for name, tensor in w.items() if "running_var" not in name},
        lambda w: w | renamed({"linear.weight": w["linear.weight"]}, "linear", "fc"),
        lambda w: renamed(w, "shortcut", "downsample"),
    ],
)
def test_ambiguous_names_are_refused(tmp_path, edit):
    path = tmp_path / "w.pth"
    torch.save(edit(network().state_dict()), path)
    with pytest.raises(UserError, match="weights do not fit"):
        load_weights(network(), path)


def test_nothing_is_unpickled_that_could_run_code(tmp_path):
    path = tmp_path / "w.pth"
    torch.save({"state_dict": network().state_dict(), "run": os.system}, path)
    with pytest.raises(UserError, match="could run code"):
        recorded_normalization(path, "resnet8")


def test_tied_weights_are_written_and_read(tmp_path):
    def tied():
        layers = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4))
        layers[1].weight = layers[0].weight
        return layers

    source, target, path = tied(), tied(), tmp_path / "w.safetensors"
    save_weights(source, path)
    load_weights(target, path)
    torch.testing.assert_close(target.state_dict(), source.state_dict(), rtol=0, atol=0)
    assert target[0].weight is target[1].weight
