"""A chain whose first layer has kernels of its own gives the same gradients as one without."""

from contextlib import nullcontext
from dataclasses import replace

import pytest
import torch
from torch import nn

from fastpeer.kernels.choice import torch_kernels
from fastpeer.models import build_model
from fastpeer.step.compile import Compiler
from fastpeer.step.precision import keep_pixels_exact
from fastpeer.victims.chain import Chain, ChainVictim
from fastpeer.victims.compiled import CompiledVictim
from fastpeer.victims.convolution import CudnnConvolutions, OwnConvolutions, PlainConvolutions
from fastpeer.victims.factory import OwnKernels, VictimFactory, choose_convolutions
from fastpeer.victims.first_layer import FirstLayerConvolutions
from fastpeer.victims.folding import FoldedNetwork
from fastpeer.victims.pgd import pgd

KERNELS = torch_kernels()
CLASSES = 10


class Counted:
    """The plain formulas, counting how often they are asked."""

    def __init__(self):
        self.calls = {"first_convolution": 0, "first_convolution_gradient": 0}
        self.kernels = replace(KERNELS, **{name: self._counting(name) for name in self.calls})

    def _counting(self, name):
        def call(*arguments):
            self.calls[name] += 1
            return getattr(KERNELS, name)(*arguments)

        return call


def resnet8(dtype=torch.float64):
    torch.manual_seed(0)
    network = build_model("resnet8", CLASSES).to(dtype).eval()
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.normal_(module.running_mean, std=0.1)
            nn.init.uniform_(module.running_var, 0.5, 1.5)
    return network.to(memory_format=torch.channels_last)


def chained(network, dtype, convolutions):
    folded = FoldedNetwork(network, dtype, KERNELS.fold)
    victim = ChainVictim(folded, Chain(folded.module, convolutions), KERNELS, 1.0)
    victim.refresh()
    return victim


@pytest.fixture
def images():
    made = torch.rand(4, 3, 8, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    return made.contiguous(memory_format=torch.channels_last)


@pytest.fixture
def target():
    return torch.softmax(torch.randn(4, CLASSES, generator=torch.Generator().manual_seed(2)).double(), 1)


def test_the_gradient_is_the_same(images, target):
    network, counted = resnet8(), Counted()
    expected = chained(network, torch.float64, PlainConvolutions()).input_gradient(images, target)
    convolutions = FirstLayerConvolutions(PlainConvolutions(), counted.kernels)
    found = chained(network, torch.float64, convolutions).input_gradient(images, target)
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-12)
    assert set(counted.calls.values()) == {1}


def test_the_first_layers_result_is_rounded_and_its_gradient_of_the_same_dtype(images, target):
    network, counted = resnet8(torch.float32), Counted()
    keep_pixels_exact(network)
    convolutions = FirstLayerConvolutions(PlainConvolutions(), counted.kernels)
    victims = [chained(network, torch.bfloat16, one) for one in (PlainConvolutions(), convolutions)]
    expected, found = (victim.input_gradient(images.float(), target.float()) for victim in victims)
    assert found.dtype == expected.dtype == torch.bfloat16
    assert set(counted.calls.values()) == {1}
    exact = chained(network.double(), torch.float64, PlainConvolutions()).input_gradient(images, target)
    off = [float((one.double() - exact).norm()) for one in (found, expected)]
    assert off[0] <= 1.5 * off[1]


def test_layers_that_the_kernels_do_not_take_fall_to_others():
    counted = Counted()
    convolutions = FirstLayerConvolutions(PlainConvolutions(), counted.kernels)
    for conv in (nn.Conv2d(3, 16, 3, 2, 1), nn.Conv2d(3, 16, 7, 1, 3), nn.Conv2d(3, 8, 3, 1, 1)):
        network = nn.Sequential(conv, nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten()).double().eval()
        images = torch.rand(2, 3, 9, 9, dtype=torch.float64)
        target = torch.ones(2, conv.out_channels, dtype=torch.float64) / conv.out_channels
        expected = chained(network, torch.float64, PlainConvolutions()).input_gradient(images, target)
        found = chained(network, torch.float64, convolutions).input_gradient(images, target)
        assert torch.equal(found, expected)
    assert set(counted.calls.values()) == {0}


def test_with_the_switch_chains_are_not_compiled_but_other_networks_are():
    for fold, kind in ((True, ChainVictim), (False, CompiledVictim)):
        factory = VictimFactory(
            torch.float64, fold, True, Compiler(), KERNELS, nullcontext, OwnKernels(stem=True)
        )
        assert isinstance(factory.victim(resnet8(), "student"), kind)


def test_the_switch_chooses_it():
    cuda = torch.device("cuda")
    assert isinstance(
        choose_convolutions(cuda, torch.bfloat16, KERNELS, OwnKernels(stem=True)), FirstLayerConvolutions
    )
    assert isinstance(choose_convolutions(cuda, torch.bfloat16, KERNELS), CudnnConvolutions)


def test_other_kernels_run_the_layers_behind_it(images, target):
    """As with `engine.convolutions`, whose masks are those of the layers behind the first."""
    network, counted = resnet8(), Counted()
    own = OwnConvolutions(KERNELS.bias_sum_relu, KERNELS.convolution, KERNELS.convolution_input_gradient)
    expected = chained(network, torch.float64, PlainConvolutions()).input_gradient(images, target)
    convolutions = FirstLayerConvolutions(own, counted.kernels)
    found = chained(network, torch.float64, convolutions).input_gradient(images, target)
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-12)
    assert set(counted.calls.values()) == {1}


def test_a_whole_step_is_the_gradient_and_then_the_update(images, target):
    network = resnet8(torch.float32)
    keep_pixels_exact(network)
    single = images.float().contiguous(memory_format=torch.channels_last)
    steps = {"epsilon": 8 / 255, "step_size": 2 / 255, "steps": 3, "kernels": KERNELS}
    calls = []

    def counted(*arguments):
        calls.append(len(arguments))
        return KERNELS.first_convolution_step(*arguments)

    kernels = replace(KERNELS, first_convolution_step=counted)
    found = []
    for whole in (True, False):
        count = torch.zeros(1, dtype=torch.int64)
        for more in ({}, {"norm": "l2"}, {"mark_nan": True}):
            victim = chained(
                network, torch.bfloat16, FirstLayerConvolutions(PlainConvolutions(), kernels, whole)
            )
            found.append(pgd(victim, single, target.float(), single, **steps, **more, nonfinite_count=count))
    assert all(torch.equal(*pair) for pair in zip(found[:3], found[3:], strict=True))
    # In L2, and where NaN is to be marked, the gradient itself is needed.
    assert len(calls) == 3


def test_only_a_layer_that_alone_reads_the_pixels_takes_whole_steps(images):
    class Twice(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv = nn.Conv2d(3, 16, 3, padding=1)

        def forward(self, x):
            return (self.conv(x).mean(1, keepdim=True) + x.mean(1, keepdim=True)).mean((2, 3))

    class Once(Twice):
        def forward(self, x):
            return self.conv(x).mean((2, 3))

    for kind, taken in ((Once, True), (Twice, False)):
        network = kind().double().eval()
        convolutions = FirstLayerConvolutions(PlainConvolutions(), KERNELS, steps=True)
        assert chained(network, torch.float64, convolutions).takes_steps(images) == taken
    assert not chained(Once().double(), torch.float64, PlainConvolutions()).takes_steps(images)
