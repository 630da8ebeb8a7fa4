"""Networks that normalise their images: folded, as chains and compiled."""

from contextlib import nullcontext

import pytest
import torch

from fastpeer.models import build_model
from fastpeer.step.compile import Compiler
from fastpeer.victims.autograd import AutogradVictim
from fastpeer.victims.chain import Chain, ChainVictim
from fastpeer.victims.convolution import PlainConvolutions
from fastpeer.victims.factory import VictimFactory
from fastpeer.victims.onednn import OnednnConvolutions
from tests.victims.folds import KERNELS, assert_same, folded, images, moved, skip_unless_it_runs

CLASSES = 7
MEAN, STD = (0.4914, 0.4822, 0.4465), (0.2471, 0.2435, 0.2616)


def normalized(name="resnet8"):
    torch.manual_seed(0)
    return moved(build_model(name, CLASSES, mean=MEAN, std=STD).double()).eval()


@pytest.mark.parametrize(
    "name",
    [
        "resnet8",
        "preactresnet18-rice",
        "wideresnet10x2",
        *(pytest.param(name, marks=pytest.mark.soak) for name in ("preactresnet18", "mobilenetv2")),
    ],
)
def test_normalised_networks_fold_and_are_chains(name):
    network = normalized(name)
    made = folded(network)
    assert_same(network, made, images())
    chain = ChainVictim(made, Chain(made.module, PlainConvolutions()), KERNELS, 1.0)
    live, labels = AutogradVictim(network, KERNELS), torch.arange(2)
    torch.testing.assert_close(chain.logits(images()), live.logits(images()), rtol=0, atol=1e-10)
    expected = live.input_gradient(images(), labels)
    torch.testing.assert_close(chain.input_gradient(images(), labels), expected, rtol=0, atol=1e-10)


@pytest.mark.parametrize("convolutions", [PlainConvolutions(), OnednnConvolutions()])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_normalised_chain_is_as_exact_as_the_networks_own(dtype, convolutions):
    skip_unless_it_runs(convolutions, dtype)
    network, batch = normalized(), images(count=48)
    labels = torch.arange(48) % CLASSES
    exact = AutogradVictim(network, KERNELS).input_gradient(batch, labels)
    network.float()
    made = folded(network, dtype)
    chain = ChainVictim(made, Chain(made.module, convolutions), KERNELS, 1.0)

    def context():
        return torch.autocast("cpu", dtype, enabled=dtype == torch.bfloat16)

    own = typical_distance(
        AutogradVictim(network, KERNELS, 1.0, context).input_gradient(batch.float(), labels), exact
    )
    found = typical_distance(chain.input_gradient(batch.float(), labels), exact)
    assert found < (own if dtype == torch.bfloat16 else 5 * own)


def typical_distance(found, exact):
    return ((found.double() - exact).flatten(1).norm(dim=1) / exact.flatten(1).norm(dim=1)).median().item()


def test_a_normalised_network_can_be_compiled(logged):
    network = normalized()
    victim = VictimFactory(torch.float64, True, True, Compiler(), KERNELS, nullcontext).victim(
        network, "student"
    )
    victim.refresh()
    expected = AutogradVictim(network, KERNELS).input_gradient(images(), torch.arange(2))
    found = victim.input_gradient(images(), torch.arange(2))
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-12)
    assert not logged
