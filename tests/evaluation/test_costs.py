"""What networks cost, against counts by hand."""

import subprocess
import sys

import pytest
import torch
from torch import nn

from fastpeer.evaluation.costs import latencies, multiply_adds, parameter_count
from fastpeer.models import build_model


def convolution(side, planes_in, planes_out, kernel):
    return side * side * planes_in * planes_out * kernel * kernel


def test_multiply_adds_of_a_resnet8_are_those_of_its_layers():
    # Stem; three blocks of two 3×3 convolutions, the second and third at half the side with a projection.
    expected = convolution(8, 3, 16, 3) + 2 * convolution(8, 16, 16, 3)
    for side, width in ((4, 32), (2, 64)):
        expected += convolution(side, width // 2, width, 3) + convolution(side, width, width, 3)
        expected += convolution(side, width // 2, width, 1)
    expected += 64 * 7
    assert multiply_adds(build_model("resnet8", 7), (8, 8)) == expected


class Products(nn.Module):
    """What networks multiply by beside layers."""

    def __init__(self):
        super().__init__()
        self.first = nn.Conv2d(3, 8, 3, groups=1, bias=False)
        self.attention = nn.MultiheadAttention(8, 2, batch_first=True)

    def forward(self, images):
        words = self.first(images).flatten(2).mT
        return torch.einsum("bij,bkj->bik", *2 * [self.attention(words, words, words)[0]])


@pytest.mark.soak
@pytest.mark.parametrize("network", [build_model("mobilenetv2", 7).eval(), Products()])
def test_multiply_adds_are_those_of_pytorchs_counter(network):
    from torch.utils.flop_counter import FlopCounterMode

    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        network(torch.zeros(1, 3, 8, 8))
    assert multiply_adds(network, (8, 8)) == counter.get_total_flops() // 2 > 0


@pytest.mark.soak
def test_counting_imports_no_compiler():
    code = (
        "import sys; from fastpeer.models import build_model;"
        "from fastpeer.evaluation.costs import multiply_adds;"
        "multiply_adds(build_model('resnet8', 7), (8, 8)); sys.exit(str('torch._dynamo' in sys.modules))"
    )
    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert ended.stderr == "False\n"


def test_buffers_are_no_parameters():
    assert parameter_count(nn.Sequential(nn.Conv2d(3, 4, 3, bias=False), nn.BatchNorm2d(4))) == 108 + 8


class Calls(nn.Module):
    def __init__(self, name, calls):
        super().__init__()
        self.name, self.calls = name, calls

    def forward(self, images):
        self.calls.append((self.name, tuple(images.shape)))
        return images


def test_networks_are_timed_in_alternation():
    calls = []
    networks = [Calls("a", calls), Calls("b", calls)]
    found = latencies(networks, [(4, 4), (6, 6)], batch=5, rounds=3, device=torch.device("cpu"))
    assert calls == [("a", (5, 3, 4, 4)), ("b", (5, 3, 6, 6))] * 5
    assert all(latency.median > 0 for latency in found)
    assert all(latency.spread >= 0 for latency in found)
