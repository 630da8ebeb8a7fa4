"""Number formats and devices."""

import copy
from types import SimpleNamespace

import pytest
import torch
from torch import nn

from fastpeer.device import choose_device
from fastpeer.errors import UserError
from fastpeer.step.precision import amp_precision, emulation_warning, keep_pixels_exact, number_format

CPU = torch.device("cpu")


@pytest.mark.parametrize(
    ("precision", "weights", "product"),
    [
        ("fp64", torch.float64, torch.float64),
        ("fp32", torch.float32, torch.float32),
        ("tf32", torch.float32, torch.float32),
        ("bf16", torch.float32, torch.bfloat16),
        ("fp16", torch.float32, torch.float16),
    ],
)
def test_precision_decides_on_weights_and_products(precision, weights, product):
    numbers = number_format(precision)
    assert numbers.weights == weights
    with numbers.autocasting(CPU):
        matrix = torch.ones(2, 2, dtype=weights)
        assert (matrix @ matrix).dtype == product


@pytest.mark.parametrize(("precision", "allowed"), [("fp32", False), ("tf32", True), ("fp64", False)])
def test_tf32_is_allowed_where_it_is_asked_for_alone(precision, allowed):
    number_format(precision).allow_tf32()
    assert torch.backends.cuda.matmul.allow_tf32 == allowed
    assert torch.backends.cudnn.allow_tf32 == allowed


def test_amp_on_a_cpu_is_bf16():
    assert amp_precision(CPU) == "bf16"


def test_auto_and_cpu_are_found():
    assert choose_device("cpu") == CPU
    assert choose_device("auto").type == ("cuda" if torch.cuda.is_available() else "cpu")


@pytest.mark.parametrize("name", ["cuda", "gpu"])
def test_a_gpu_without_a_number_gets_the_one_that_pytorch_wants(monkeypatch, name):
    made_current = []
    monkeypatch.setattr("torch.empty", lambda *_, device: SimpleNamespace(device=torch.device(device, 0)))
    monkeypatch.setattr("torch.cuda.set_device", made_current.append)
    assert choose_device(name) == torch.device("cuda:0")
    assert made_current == [torch.device("cuda:0")]


@pytest.mark.parametrize("name", ["cuda", "cuda:99", "cuda:x", "gpu", "", "meta", "xpu", "mps"])
def test_absent_and_nonsense_devices_are_refused_in_one_line(name):
    if name in ("cuda", "gpu") and torch.cuda.is_available():
        pytest.skip("there is one")
    with pytest.raises(UserError) as refusal:
        choose_device(name)
    text = str(refusal.value)
    assert "\n" not in text
    assert text.startswith("--device ")
    assert name in text
    # PyTorch without CUDA says so, with it and without a GPU it misses a driver of NVIDIA.
    assert name != "gpu" or "CUDA" in text or "NVIDIA" in text


def test_of_the_convolution_that_sees_the_pixels_only_the_result_is_rounded():
    network = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Conv2d(4, 4, 3))
    names = list(network.state_dict())
    images = torch.rand(2, 3, 8, 8)
    exact = network[0](images)
    keep_pixels_exact(network)
    copied = copy.deepcopy(network)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(network[0](images), exact.bfloat16())
        assert network(images).dtype == torch.bfloat16
    assert torch.equal(network[0](images), exact)
    assert list(network.state_dict()) == names
    # An averaged student is a copy: its stem must be its own.
    copied[0].weight.data.zero_()
    assert torch.equal(network[0](images), exact)


@pytest.mark.parametrize("supported", [True, False])
def test_a_processor_without_bf16_is_told_of(supported, monkeypatch):
    monkeypatch.setattr(torch.ops.mkldnn, "_is_mkldnn_bf16_supported", lambda: supported, raising=False)
    assert emulation_warning(torch.float32) == []
    assert emulation_warning(torch.bfloat16) == (
        [] if supported
        else ["this processor has no bfloat16 instructions: --precision fp32 is several times faster"]
    )  # fmt: skip
