"""Normalisation inside a network."""

import copy

import pytest
import torch
from safetensors.torch import load_file

from fastpeer.models import build_model
from fastpeer.models.normalized import Normalized, without_normalization
from fastpeer.models.weights import load_weights, recorded_normalization, save_weights
from fastpeer.step.precision import ExactConv2d, keep_pixels_exact

MEAN, STD = (0.4914, 0.4822, 0.4465), (0.2471, 0.2435, 0.2616)
NUMBERS = [(MEAN, STD), ((0.5,), (0.25,))]


def normalized(mean=MEAN, std=STD, seed=0):
    torch.manual_seed(seed)
    return build_model("resnet8", 7, mean=mean, std=std)


@pytest.fixture
def images():
    return torch.rand(2, 3, 8, 8, generator=torch.Generator().manual_seed(1)).double()


@pytest.mark.parametrize(("mean", "std"), NUMBERS)
def test_images_are_normalised_in_double_as_by_the_numbers_themselves(mean, std, images):
    network = normalized(mean, std).double().eval()
    exact = [torch.tensor(values, dtype=torch.float64).view(1, -1, 1, 1) for values in (mean, std)]
    expected = without_normalization(network)((images - exact[0]) / exact[1])
    torch.testing.assert_close(network(images), expected, rtol=0, atol=1e-15)


def test_without_numbers_a_network_is_itself():
    assert not isinstance(build_model("resnet8", 7), Normalized)


def test_normalisation_follows_its_network_and_is_no_weight_of_it(images):
    network = copy.deepcopy(normalized()).to(torch.float16).double()
    assert network.normalization.mean.dtype == torch.float64
    assert torch.equal(network.normalization.mean.flatten(), torch.tensor(MEAN, dtype=torch.float64))
    assert not [name for name in network.state_dict() if name.startswith("normalization")]
    assert network(images).dtype == torch.float64


def test_files_have_the_plain_names_and_remember_the_numbers(tmp_path):
    file, network = tmp_path / "w.safetensors", normalized()
    save_weights(network, file)
    assert load_file(file).keys() == build_model("resnet8", 7).state_dict().keys()
    assert recorded_normalization(file, "resnet8") == (MEAN, STD)
    other = normalized(seed=1)
    load_weights(other, file)
    torch.testing.assert_close(other.state_dict(), network.state_dict(), rtol=0, atol=0)


def test_under_autocast_the_first_convolution_sees_exact_pixels(images):
    network = normalized().eval()
    keep_pixels_exact(network)
    stem = without_normalization(network).conv1
    assert type(stem) is ExactConv2d
    seen = []
    stem.register_forward_pre_hook(lambda module, args: seen.append(args[0]))
    with torch.autocast("cpu", torch.bfloat16):
        network(images.float())
    assert seen[0].dtype == torch.float32
