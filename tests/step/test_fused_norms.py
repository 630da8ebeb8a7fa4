"""BatchNorm, sum and ReLU as one call in the training passes: the same results, by the same layers."""

import copy
from dataclasses import replace

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from fastpeer.kernels.choice import torch_kernels
from fastpeer.models import build_model
from fastpeer.step.fused_norms import NormsFused
from fastpeer.step.split_batchnorm import batchnorms, set_updates, split_batchnorms


class Block(nn.Module):
    """BatchNorms with and without followers that can be taken along."""

    def __init__(self, kind):
        super().__init__()
        self.conv, self.other = nn.Conv2d(3, 3, 3, padding=1), nn.Conv2d(3, 3, 1)
        self.norm, self.act = nn.BatchNorm2d(3), nn.ReLU(inplace=True)
        self.kind = kind

    def forward(self, x):
        x, out = self.other(x), self.norm(self.conv(x))
        if self.kind == "relu":
            return self.act(out) * x
        if self.kind == "sum":
            return torch.relu(x + out)
        if self.kind == "sum in place":
            out += x
            return F.relu(out)
        if self.kind == "into the residual":
            same = x
            x += out
            return F.relu(x) + 0.5 * same
        if self.kind == "read between":
            return F.relu(out) + out
        if self.kind == "sum read":
            total = out + x
            return F.relu(total) + total
        if self.kind == "twice itself":
            return F.relu(out + out)
        if self.kind == "broadcast":
            return F.relu(out + x.mean((2, 3), keepdim=True))
        return F.relu(out + 1.0)


def images():
    return torch.randn(6, 3, 8, 8, generator=torch.Generator().manual_seed(1)).double()


def assert_same_passes(network, expected_fused, updates=(0, 0, 1)):
    literal = copy.deepcopy(network)
    names = list(network.state_dict())
    for one in (network, literal):
        assert split_batchnorms(one)
    set_updates(literal, updates)
    expected = literal(images())
    fused = NormsFused(network)
    assert fused.num_fused == expected_fused
    # With channels by the eight, networks keep bits; blocks of three cannot.
    kernels = replace(torch_kernels().batch_norm, keeps_signs=True)
    for norm in batchnorms(network):
        norm.updates, norm.kernels = updates, kernels
    found = fused(images())
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-11)
    torch.testing.assert_close(network.state_dict(), literal.state_dict(), rtol=0, atol=1e-12)
    assert list(network.state_dict()) == names
    for logits in (found, expected):
        logits.square().sum().backward()
    gradients = [[one.grad for one in net.parameters()] for net in (network, literal)]
    torch.testing.assert_close(*gradients, rtol=1e-9, atol=1e-8)


FUSED = {"relu": 1, "sum": 1, "sum in place": 1, "broadcast": 1}


@pytest.mark.parametrize(
    "kind",
    [*FUSED, "into the residual", "read between", "sum read", "twice itself", "constant"],
)
def test_followers_are_taken_along_where_nothing_reads_between(kind):
    torch.manual_seed(0)
    assert_same_passes(Block(kind).double(), FUSED.get(kind, 0))


@pytest.mark.parametrize(
    ("model", "count"),
    [("resnet8", 7), ("wideresnet10x1", 7), pytest.param("preactresnet18-rice", 17, marks=pytest.mark.soak)],
)
def test_networks_take_all_their_relus_along(model, count):
    torch.manual_seed(0)
    assert_same_passes(build_model(model, 5).double(), count)


def calls(network, fused):
    """How often BatchNorm's own forward runs when the fused network is called."""
    count = []
    norm = batchnorms(network)[0]
    own = type(norm).forward
    norm.forward = lambda x: count.append(1) or own(norm, x)
    fused(images())
    return len(count)


def test_hooks_and_eval_mode_get_the_network_itself():
    network = Block("relu").double()
    assert split_batchnorms(network)
    fused = NormsFused(network)
    for norm in batchnorms(network):
        norm.kernels = torch_kernels().batch_norm
    assert calls(network, fused) == 0
    seen = []
    hook = network.act.register_forward_hook(lambda *_: seen.append(1))
    assert calls(network, fused) == 1
    assert seen == [1]
    hook.remove()
    assert calls(network, fused) == 0
    network.eval()
    assert calls(network, fused) == 1


def test_what_cannot_be_traced_is_called_as_it_is():
    class Branching(nn.Module):
        def __init__(self):
            super().__init__()
            self.norm = nn.BatchNorm2d(3)

        def forward(self, x):
            return F.relu(self.norm(x)) if x.sum() < 1e9 else self.norm(x)

    network = Branching().double()
    assert split_batchnorms(network)
    fused = NormsFused(network)
    assert fused.obstacle
    assert fused.describe().startswith("BatchNorm alone: torch.fx cannot trace it")
    assert torch.equal(fused(images()), copy.deepcopy(network)(images()))


def test_each_gradient_is_taken_once_only():
    network = nn.Sequential(nn.BatchNorm2d(3)).double()
    assert split_batchnorms(network)
    set_updates(network, (0,), kernels=torch_kernels().batch_norm)
    x = images().requires_grad_()
    gradient = torch.autograd.grad(network(x).square().sum(), x, create_graph=True)[0]
    with pytest.raises(RuntimeError, match="once_differentiable"):
        gradient.sum().backward()
