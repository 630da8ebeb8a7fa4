"""Folded networks beside themselves, in float64."""

from contextlib import nullcontext

import pytest
import torch

from fastpeer.kernels.choice import torch_kernels
from fastpeer.kernels.fold import Fold
from fastpeer.victims.autograd import AutogradVictim, FoldedVictim
from fastpeer.victims.convolution import PlainConvolutions
from fastpeer.victims.folding import FoldedNetwork
from fastpeer.victims.onednn import OnednnConvolutions, onednn_supports

KERNELS = torch_kernels()


def moved(network):
    """Give a network other statistics and parameters than it was born with, zeros above all."""
    random = torch.Generator().manual_seed(5)
    for name, tensor in network.state_dict().items():
        if tensor.is_floating_point() and tensor.dim() <= 1:
            positive = name.endswith(("running_var", "norm.weight", "bn.weight"))
            tensor.add_(torch.rand(tensor.shape, generator=random).to(tensor) + (0.5 if positive else -0.5))
            tensor.abs_() if positive else None
    return network


def images(size=16, count=2):
    random = torch.Generator().manual_seed(1)
    batch = torch.rand(count, 3, size, size, generator=random).double()
    return batch.to(memory_format=torch.channels_last)


def folded(network, dtype=torch.float64):
    made = FoldedNetwork(network, dtype, Fold)
    made.refresh()
    return made


def kinds(made):
    return [type(module) for module in made.module.modules()]


def assert_same(network, made, batch):
    """Compare logits and gradients with those of the network in eval mode."""
    network.eval()
    live, labels = AutogradVictim(network, KERNELS), torch.arange(len(batch))
    victim = FoldedVictim(made, KERNELS, 1.0, nullcontext)
    expected = live.logits(batch)
    torch.testing.assert_close(victim.logits(batch), expected, rtol=1e-9, atol=1e-10)
    gradient = live.input_gradient(batch, labels)
    assert gradient.abs().max() > 0
    torch.testing.assert_close(victim.input_gradient(batch, labels), gradient, rtol=1e-8, atol=1e-10)


def skip_unless_it_runs(convolutions: PlainConvolutions, dtype: torch.dtype) -> None:
    """Skip a test of oneDNN's convolutions in a dtype that this processor has no instructions for."""
    if isinstance(convolutions, OnednnConvolutions) and not onednn_supports(dtype):
        pytest.skip(f"oneDNN convolves in {dtype} on other processors only")
