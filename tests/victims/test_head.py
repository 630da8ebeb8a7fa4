"""A chain whose last layers are one kernel gives the same gradients as one without."""

from dataclasses import replace

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from fastpeer.kernels.choice import torch_kernels
from fastpeer.models import build_model
from fastpeer.victims.chain import Chain, ChainVictim
from fastpeer.victims.convolution import PlainConvolutions
from fastpeer.victims.folding import FoldedNetwork

KERNELS = torch_kernels()
CLASSES = 5


def victims(network, kernels=KERNELS):
    """Return the victim with and without the kernel."""
    folded = FoldedNetwork(network.eval(), next(network.parameters()).dtype, KERNELS.fold)
    made = [
        ChainVictim(folded, Chain(folded.module, PlainConvolutions()), kernels, 2.0, by_head)
        for by_head in (True, False)
    ]
    made[0].refresh()
    return made


@pytest.fixture
def images():
    made = torch.rand(3, 3, 8, 8, generator=torch.Generator().manual_seed(1))
    return made.to(memory_format=torch.channels_last)


@pytest.mark.parametrize("labels", [True, False])
@pytest.mark.parametrize("name", ["resnet8", "wideresnet10x1", "mobilenetv2"])
def test_the_gradient_is_the_same(name, labels, images):
    torch.manual_seed(0)
    calls = []

    def counted(features, *arguments):
        calls.append(features.shape)
        return KERNELS.attack_head(features, *arguments)

    made = victims(build_model(name, CLASSES), replace(KERNELS, attack_head=counted))
    target = torch.tensor([1, 4, 0]) if labels else torch.softmax(torch.randn(3, CLASSES), 1)
    found, expected = (victim.input_gradient(images, target) for victim in made)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-6 * float(expected.abs().max()))
    assert len(calls) == 1
    # Another loss's gradient at the logits goes its own way.
    assert torch.equal(*(victim.gradient_from(images, torch.cos) for victim in made))


class Ending(nn.Module):
    """A convolution, and any end."""

    def __init__(self, end):
        super().__init__()
        self.conv, self.end, self.linear = nn.Conv2d(3, 8, 3, padding=1), end, nn.Linear(8, CLASSES)

    def forward(self, x):
        return self.end(self, self.conv(x))


ENDS = {
    "relu apart": (
        lambda net, x: net.linear(torch.relu(F.avg_pool2d(x, 2)).mean((2, 3))),
        True,
    ),
    "no relu": (lambda net, x: net.linear(x.mean((-1, -2))), True),
    "flattened": (lambda net, x: net.linear(x.relu().mean((2, 3), keepdim=True).flatten(1)), True),
    "rows alone": (lambda net, x: net.linear(x.mean(3).mean(2)), False),
    "read twice": (lambda net, x: net.linear((x.relu() + x).mean((2, 3))), True),
    "no classifier": (lambda net, x: x.relu().mean((2, 3)), False),
}


@pytest.mark.parametrize("end", ENDS)
def test_only_what_it_computes_is_left_to_it(end, images):
    torch.manual_seed(0)
    function, taken = ENDS[end]
    made = victims(Ending(function).double())
    assert (made[0].head is not None) == taken
    classes = made[0].logits(images.double()).shape[1]
    target = torch.softmax(torch.randn(3, classes).double(), 1)
    found, expected = (victim.input_gradient(images.double(), target) for victim in made)
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-12)
