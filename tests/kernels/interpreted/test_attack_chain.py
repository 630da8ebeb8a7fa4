"""An attack's chain by Triton's kernels alone: its gradient is as near to float64 as by plain operators."""

import copy
from dataclasses import replace

import pytest
import torch
from torch import nn

from fastpeer.kernels.choice import torch_kernels, triton_kernels
from fastpeer.models.resnet import BasicBlock, ResNet
from fastpeer.victims.chain import Chain, ChainVictim
from fastpeer.victims.convolution import OwnConvolutions, PlainConvolutions
from fastpeer.victims.folding import FoldedNetwork

CLASSES = 10
PLAIN = torch_kernels()


@pytest.fixture
def network():
    """Two blocks, the second at stride 2 with a projection: all kinds of convolutions that there are."""
    torch.manual_seed(0)
    made = ResNet(BasicBlock, 16, (16, 32), (1, 1), CLASSES).eval()
    for norm in (one for one in made.modules() if isinstance(one, nn.BatchNorm2d)):
        nn.init.normal_(norm.running_mean, std=0.1)
        nn.init.uniform_(norm.running_var, 0.5, 1.5)
    return made.to(memory_format=torch.channels_last)


def victim(network, dtype, convolutions, kernels):
    folded = FoldedNetwork(network, dtype, kernels.fold)
    made = ChainVictim(folded, Chain(folded.module, convolutions), kernels, 1.0, kernels is not PLAIN)
    made.refresh()
    return made


def own(kernels):
    return OwnConvolutions(
        kernels.bias_sum_relu, kernels.convolution, kernels.convolution_input_gradient, others=True,
        keeps_signs=True,
    )  # fmt: skip


def test_the_gradient_is_as_exact_as_by_plain_operators(device, network):
    random = torch.Generator().manual_seed(1)
    images = torch.rand(1, 3, 8, 8, generator=random).to(device, memory_format=torch.channels_last)
    target = torch.softmax(torch.randn(1, CLASSES, generator=random), 1).to(device)
    network = network.to(device)
    # Interpreted, folding takes most of the time, and it has tests of its own.
    kernels = replace(triton_kernels(), fold=PLAIN.fold)
    exact = victim(copy.deepcopy(network).double(), torch.float64, PlainConvolutions(), PLAIN)
    truth = exact.input_gradient(images.double(), target.double())
    off = [
        # Triton's interpreter multiplies no matrices of bfloat16.
        (victim(network, torch.float16, *how).input_gradient(images, target).double() - truth).norm()
        for how in ((own(kernels), kernels), (PlainConvolutions(), PLAIN))
    ]
    assert off[0] <= 2 * off[1]
    assert off[0] < 0.01 * truth.norm()
