"""The usual ways to write what a chain computes keep the chain, and its gradient is autograd's."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from fastpeer.victims.autograd import AutogradVictim
from fastpeer.victims.chain import Chain, ChainVictim, NotAChain
from fastpeer.victims.convolution import PlainConvolutions
from fastpeer.victims.factory import choose_convolutions
from fastpeer.victims.windowed import windowed_logits
from tests.victims.folds import KERNELS, folded, images, moved

CLASSES, CHANNELS = 7, 6
SIDE = 8
CPU = torch.device("cpu")


class Ending(nn.Module):
    """A network whose end, behind planes of 8×8, and whose block can be exchanged."""

    def __init__(self, head, body=lambda net, x: torch.relu(x), features=CHANNELS, classifier=nn.Linear):
        super().__init__()
        torch.manual_seed(0)
        self.conv, self.norm = nn.Conv2d(3, CHANNELS, 3, padding=1, stride=2), nn.BatchNorm2d(CHANNELS)
        self.norm2 = nn.BatchNorm2d(CHANNELS)
        self.relu, self.drop = nn.ReLU(inplace=True), nn.Dropout(0.5)
        self.flatten, self.pool, self.average = nn.Flatten(), nn.AdaptiveAvgPool2d(1), nn.AvgPool2d(SIDE)
        self.identity, self.body, self.head = nn.Identity(), body, head
        self.linear = classifier(features, CLASSES)
        self.conv2, self.mix, self.one = (
            nn.Conv2d(CHANNELS, out, side, padding=side // 2)
            for out, side in ((CHANNELS, 3), (CHANNELS, 1), (1, 3))
        )

    def forward(self, x):
        x = self.body(self, self.norm(self.conv(x)))
        return self.linear(self.head(self, x))


POOLED = {
    "x.mean([2, 3])": lambda net, x: x.mean([2, 3]),
    "x.mean((2, 3))": lambda net, x: x.mean((2, 3)),
    "x.mean((-2, -1))": lambda net, x: x.mean((-2, -1)),
    "x.mean(dim=(2, 3))": lambda net, x: x.mean(dim=(2, 3)),
    "torch.mean(x, [2, 3])": lambda net, x: torch.mean(x, [2, 3]),
    "x.mean(-1).mean(-1)": lambda net, x: x.mean(-1).mean(-1),
    "x.mean(3).mean(2)": lambda net, x: x.mean(3).mean(2),
    "mean of flattened planes": lambda net, x: x.mean((2, 3), keepdim=True).flatten(1),
}
PLANES = {
    "nn.AdaptiveAvgPool2d(1)": lambda net, x: net.pool(x),
    "nn.AvgPool2d(8)": lambda net, x: net.average(x),
    "F.adaptive_avg_pool2d(x, 1)": lambda net, x: F.adaptive_avg_pool2d(x, 1),
    "F.adaptive_avg_pool2d(x, (1, 1))": lambda net, x: F.adaptive_avg_pool2d(x, (1, 1)),
    "F.adaptive_avg_pool2d(x, output_size=1)": lambda net, x: F.adaptive_avg_pool2d(x, output_size=1),
    "F.avg_pool2d(x, 8)": lambda net, x: F.avg_pool2d(x, 8),
    "F.avg_pool2d(x, x.shape[2:])": lambda net, x: F.avg_pool2d(x, x.shape[2:]),
    "F.avg_pool2d(x, x.size()[2:])": lambda net, x: F.avg_pool2d(x, x.size()[2:]),
    "F.avg_pool2d(x, kernel_size=x.shape[2:])": lambda net, x: F.avg_pool2d(x, kernel_size=x.shape[2:]),
}
FLATTENINGS = {
    "nn.Flatten": lambda net, x: net.flatten(x),
    "torch.flatten(x, 1)": lambda net, x: torch.flatten(x, 1),
    "torch.flatten(x, start_dim=1)": lambda net, x: torch.flatten(x, start_dim=1),
    "x.flatten(1)": lambda net, x: x.flatten(1),
    "x.flatten(start_dim=1)": lambda net, x: x.flatten(start_dim=1),
    "x.view(x.size(0), -1)": lambda net, x: x.view(x.size(0), -1),
    "x.view(x.size()[0], -1)": lambda net, x: x.view(x.size()[0], -1),
    "x.view(x.shape[0], -1)": lambda net, x: x.view(x.shape[0], -1),
    "x.view((x.shape[0], -1))": lambda net, x: x.view((x.shape[0], -1)),
    "x.view(x.size(dim=0), -1)": lambda net, x: x.view(x.size(dim=0), -1),
    "x.view(x.size(0), x.size(1))": lambda net, x: x.view(x.size(0), x.size(1)),
    "x.view(-1, 6)": lambda net, x: x.view(-1, CHANNELS),
    "x.reshape(x.shape[0], -1)": lambda net, x: x.reshape(x.shape[0], -1),
    "x.reshape(-1, 6)": lambda net, x: x.reshape(-1, CHANNELS),
    "torch.reshape(x, (x.size(0), -1))": lambda net, x: torch.reshape(x, (x.size(0), -1)),
    "x.contiguous().view(x.size(0), -1)": lambda net, x: x.contiguous().view(x.size(0), -1),
    "x.squeeze()": lambda net, x: x.squeeze(),
    "x.squeeze(-1).squeeze(-1)": lambda net, x: x.squeeze(-1).squeeze(-1),
    "x.squeeze(3).squeeze(2)": lambda net, x: x.squeeze(3).squeeze(2),
    "x.squeeze((2, 3))": lambda net, x: x.squeeze((2, 3)),
    "torch.squeeze(torch.squeeze(x, 3), dim=2)": lambda net, x: torch.squeeze(torch.squeeze(x, 3), dim=2),
}
HEADS = (
    POOLED
    | {name: lambda net, x, pool=pool: pool(net, x).flatten(1) for name, pool in PLANES.items()}
    | {name: lambda net, x, flat=flat: flat(net, net.pool(x)) for name, flat in FLATTENINGS.items()}
)


def in_place_sum(net, x):
    y = net.norm2(x)
    y += x
    return F.relu(y)


def unread(net, x):
    net.norm2(x)
    return torch.relu(x)


BODIES = {
    "F.relu": lambda net, x: F.relu(x),
    "F.relu, in place": lambda net, x: F.relu(x, inplace=True),
    "x.relu_()": lambda net, x: x.relu_(),
    "torch.relu_": lambda net, x: torch.relu_(x),
    "nn.ReLU(inplace=True)": lambda net, x: net.relu(x),
    "nn.Identity and nn.Dropout": lambda net, x: net.drop(net.identity(net.relu(x))),
    "F.dropout": lambda net, x: F.dropout(F.relu(x), 0.3, net.training),
    "x += y": in_place_sum,
    "x.add(y)": lambda net, x: torch.relu(net.norm2(x).add(x)),
    "x.add_(y)": lambda net, x: net.norm2(x).add_(x).relu(),
    "F.avg_pool2d within": lambda net, x: F.avg_pool2d(x, 3, 1, 1).relu(),
    "what nothing reads": unread,
}
BROADCAST = {
    "x and its means": lambda net, x: x + x.mean((2, 3), keepdim=True),
    "a convolution and means": lambda net, x: (net.conv2(x) + x.mean((2, 3), keepdim=True)).relu(),
    "x and a convolution of means": lambda net, x: (x + net.mix(x.mean((2, 3), keepdim=True))).relu(),
    "x and one channel": lambda net, x: torch.relu(x) + net.one(x),
    "one channel and x": lambda net, x: net.norm2(net.one(x) + torch.relu(x)),
    "a convolution and one channel": lambda net, x: torch.relu(net.conv2(x) + net.one(x)),
}
"""Sums of tensors of different shapes."""


def assert_chained(network, batch, dtype=torch.float64, within=1e-12):
    """Require a chain with the logits and the input gradient of the network in eval mode."""
    network, batch = moved(network.to(dtype)).eval(), batch.to(dtype)
    made = folded(network, dtype)
    victim = ChainVictim(made, Chain(made.module, choose_convolutions(CPU, dtype, KERNELS)), KERNELS, 1.0)
    live, labels = AutogradVictim(network, KERNELS), torch.arange(len(batch))
    torch.testing.assert_close(victim.logits(batch), live.logits(batch), rtol=0, atol=within)
    expected = live.input_gradient(batch, labels)
    assert expected.abs().max() > 0
    found = victim.input_gradient(batch, labels)
    torch.testing.assert_close(found, expected, rtol=0, atol=within)


@pytest.mark.parametrize("name", HEADS)
def test_the_usual_ends_of_a_network_are_a_chain(name):
    assert_chained(Ending(HEADS[name]), images(2 * SIDE))


@pytest.mark.parametrize("name", BODIES)
def test_the_usual_blocks_of_a_network_are_a_chain(name):
    assert_chained(Ending(HEADS["x.mean((2, 3))"], BODIES[name]), images(2 * SIDE))


@pytest.mark.parametrize("name", BROADCAST)
@pytest.mark.parametrize(("dtype", "within"), [(torch.float64, 1e-12), (torch.float32, 1e-5)])
def test_summands_may_have_different_shapes(name, dtype, within):
    """In float32 by the library that has a sum of its own behind a convolution."""
    assert_chained(Ending(HEADS["x.mean((2, 3))"], BROADCAST[name]), images(2 * SIDE), dtype, within)


@pytest.mark.parametrize("name", BROADCAST)
def test_summands_of_different_shapes_are_followed_in_no_window(name):
    network = Ending(HEADS["x.mean((2, 3))"], BROADCAST[name]).eval()
    chain = Chain(folded(network, torch.float32).module, choose_convolutions(CPU, torch.float32, KERNELS))
    batch = images(2 * SIDE).float()
    with torch.no_grad():
        windowed = windowed_logits(chain, batch, 2)
        changed = batch.clone()
        changed[:, :, 3:5, 6:8] = 0.5
        found = windowed.change(((3, 5), (6, 8)), changed[:, :, 3:5, 6:8])
        torch.testing.assert_close(found, chain.logits(changed), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("name", ["nn.Flatten", "x.flatten(1)", "x.reshape(x.shape[0], -1)"])
def test_planes_may_be_flattened_whole(name):
    assert_chained(Ending(FLATTENINGS[name], features=CHANNELS * SIDE * SIDE), images(2 * SIDE))


@pytest.mark.parametrize("kernel", [4, (4, 2)])
def test_planes_may_be_pooled_in_windows(kernel):
    windows = F.avg_pool2d(torch.zeros(1, SIDE, SIDE), kernel).numel()
    head = Ending(lambda net, x: F.avg_pool2d(x, kernel).reshape(x.size(0), -1), features=CHANNELS * windows)
    assert_chained(head, images(2 * SIDE))


def test_a_head_may_have_several_layers():
    layers = nn.Linear(CHANNELS, 5), nn.ReLU(), nn.Linear(5, CLASSES)
    network = Ending(HEADS["nn.Flatten"], classifier=lambda *_: nn.Sequential(*layers))
    assert_chained(network, images(2 * SIDE))


def test_a_convolution_may_be_the_classifier():
    layers = nn.Conv2d(CHANNELS, CLASSES, 1), nn.AdaptiveAvgPool2d(1), nn.Flatten()
    network = Ending(lambda net, x: x, classifier=lambda *_: nn.Sequential(*layers))
    assert_chained(network, images(2 * SIDE))


@pytest.mark.parametrize("name", ["nn.AdaptiveAvgPool2d(1)", "F.avg_pool2d(x, 8)", "x.flatten(1)"])
def test_logits_are_as_wide_as_the_classifier_in_low_precision(name):
    flattened = {"head": FLATTENINGS[name], "features": CHANNELS * SIDE**2} if name in FLATTENINGS else {}
    network = moved(Ending(**(flattened or {"head": HEADS[name]}))).eval()
    made = folded(network, torch.bfloat16)
    chain = ChainVictim(made, Chain(made.module, PlainConvolutions()), KERNELS, 1.0)
    batch, labels = images(2 * SIDE).float(), torch.arange(2)
    assert chain.logits(batch).dtype == torch.float32
    expected = AutogradVictim(network, KERNELS).input_gradient(batch, labels)
    assert (chain.input_gradient(batch, labels) - expected).norm() < 0.1 * expected.norm()


@pytest.mark.parametrize(
    ("head", "reason"),
    [
        (lambda net, x: torch.amax(x, (2, 3)), "there is no rule for amax"),
        (lambda net, x: x.flatten(1, 2).mean(2), "there is no rule for flatten"),
        (lambda net, x: x.mean((2, 3), dtype=torch.float64), "there is no rule for mean"),
        (lambda net, x: (x + x.size(0)).mean((2, 3)), "it adds something other than two tensors"),
        (lambda net, x: x.view(x.size(1), -1)[:, :CHANNELS], "there is no rule for view"),
        (lambda net, x: x.mean((2, 3)) - net.linear.bias[:1], "outside of a layer"),
        (lambda net, x: F.adaptive_avg_pool2d(x, 2).flatten(1)[:, :6], "no rule for adaptive_avg_pool2d"),
        (lambda net, x: F.avg_pool2d(x, x.size(3)).flatten(1), "no rule for avg_pool2d"),
    ],
)
def test_what_is_no_chain_is_named_in_one_line(head, reason):
    made = folded(moved(Ending(head).double()))
    with pytest.raises(NotAChain, match=reason) as refusal:
        Chain(made.module, PlainConvolutions())
    assert "\n" not in str(refusal.value)
