"""However a network is built, it is the same folded, as a chain, by own kernels, in windows, in training."""

import copy
from contextlib import nullcontext
from dataclasses import replace

import pytest
import torch

from fastpeer.kernels.choice import torch_kernels
from fastpeer.step.fused_norms import NormsFused
from fastpeer.step.split_batchnorm import set_updates, split_batchnorms
from fastpeer.victims.autograd import AutogradVictim
from fastpeer.victims.chain import ChainVictim
from fastpeer.victims.factory import OwnKernels, VictimFactory
from fastpeer.victims.windowed import windowed_logits
from tests.victims.plain_formulas import let_formulas_run
from tests.victims.random_networks import SIDE, RandomNetwork

KERNELS = torch_kernels()
LABELS = torch.tensor([0, 3])
OURS = OwnKernels(True, True, True, True, True, True)
SEEDS = [
    pytest.param(range(first, first + 20), id=str(first), marks=pytest.mark.soak if first else ())
    for first in range(0, 2000, 20)
]


@pytest.fixture(autouse=True)
def _formulas_of_own_kernels(monkeypatch):
    let_formulas_run(monkeypatch)


def drawn(seed):
    """Return a network in eval mode that autograd can differentiate, and images; none if there is none."""
    network = RandomNetwork(seed, 6 + seed % 10).eval()
    images = torch.rand(2, 3, SIDE, SIDE, generator=torch.Generator().manual_seed(seed))
    images = images.contiguous(memory_format=torch.channels_last)
    try:
        live = AutogradVictim(copy.deepcopy(network).double(), KERNELS)
        gradient = live.input_gradient(images.double(), LABELS)
    except RuntimeError:
        # Changed in place what a gradient needs.
        return None
    return (network, images, live.logits(images.double()), gradient) if gradient.abs().max() > 1e-9 else None


def victim_of(network, dtype, own):
    network = copy.deepcopy(network).to(dtype, memory_format=torch.channels_last)
    victim = VictimFactory(dtype, True, True, None, KERNELS, nullcontext, own).victim(network, "student")
    victim.refresh()
    return victim


def assert_near(found, expected, within, network):
    off = (found - expected).abs().max() / expected.abs().max().clamp_min(1e-3)
    assert off < within, "\n".join(network.text)


@pytest.mark.parametrize("seeds", SEEDS)
@pytest.mark.parametrize(
    ("dtype", "own", "within"),
    [(torch.float64, OwnKernels(), 1e-9), (torch.float64, OURS, 1e-9), (torch.float32, OwnKernels(), 1e-3)],
    ids=["float64", "own kernels", "float32"],
)
def test_an_attack_follows_the_networks_own_gradient(seeds, dtype, own, within):
    for network, images, logits, gradient in filter(None, map(drawn, seeds)):
        victim, given = victim_of(network, dtype, own), images.to(dtype)
        assert_near(victim.logits(given), logits, within, network)
        assert_near(victim.input_gradient(given, LABELS), gradient, within, network)
        assert torch.equal(given, images.to(dtype))


@pytest.mark.parametrize("seeds", SEEDS)
def test_a_changed_window_gives_the_changed_images_logits(seeds):
    for network, images, _, _ in filter(None, map(drawn, seeds)):
        victim = victim_of(network, torch.float32, OwnKernels())
        windowed = windowed_logits(victim.chain, images, 2) if isinstance(victim, ChainVictim) else None
        if windowed is None:
            continue
        changed = images.clone()
        changed[:, :, 3:5, 5:7] = 0.5
        found = windowed.change(((3, 5), (5, 7)), changed[:, :, 3:5, 5:7].clone())
        assert_near(found, victim.logits(changed), 1e-3, network)


@pytest.mark.parametrize("seeds", SEEDS)
def test_training_with_fused_norms_gives_the_same_gradients_and_statistics(seeds):
    for network, images, _, _ in filter(None, map(drawn, seeds)):
        plain = copy.deepcopy(network).double().train()
        ours = copy.deepcopy(plain)
        assert split_batchnorms(ours)
        set_updates(ours, (0,), kernels=replace(KERNELS.batch_norm, keeps_signs=True))
        for one in (plain, NormsFused(ours)):
            one(images.double()).square().sum().backward()
        for one, other in zip(plain.parameters(), ours.parameters(), strict=True):
            torch.testing.assert_close(
                other.grad, one.grad, rtol=1e-7, atol=1e-8, msg="\n".join(network.text)
            )
        torch.testing.assert_close(dict(ours.named_buffers()), dict(plain.named_buffers()), rtol=0, atol=1e-9)
