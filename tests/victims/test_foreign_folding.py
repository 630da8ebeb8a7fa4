"""Foreign networks are folded right, or not at all."""

import copy
from contextlib import nullcontext

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.nn.utils.parametrizations import weight_norm

from fastpeer.models import build_model
from fastpeer.step.precision import ExactConv2d, keep_pixels_exact
from fastpeer.step.split_batchnorm import SplitBatchNorm, split_batchnorms
from fastpeer.victims.autograd import AutogradVictim, FoldedVictim
from fastpeer.victims.chain import Chain, ChainVictim, NotAChain
from fastpeer.victims.convolution import PlainConvolutions
from fastpeer.victims.factory import VictimFactory
from fastpeer.victims.folding import EvalBatchNorm, FoldedConv2d, FoldedLinear, NotFoldable
from tests.models.timms import need_timm
from tests.victims.folds import KERNELS, assert_same, folded, images, kinds, moved

CLASSES = 7
TIMM = [
    "resnet10t",
    "vit_tiny_patch16_224",
    "test_convnext",
    "mobilenetv3_small_050",
    "test_efficientnet",
    "regnetx_002",
    *(pytest.param(name, marks=pytest.mark.soak) for name in ("resnetv2_18", "swin_tiny_patch4_window7_224")),
    "levit_128s",
]


def timm_network(name, size=64):
    need_timm()
    torch.manual_seed(0)
    return moved(build_model(f"timm:{name}", CLASSES, (size, size)).double())


@pytest.mark.parametrize("name", TIMM)
def test_networks_of_timm_fold_to_what_they_compute(name):
    network = timm_network(name)
    for dropout in (one for one in network.modules() if isinstance(one, nn.Dropout)):
        dropout.p = 0.5
    before = [(module, dict(vars(module))) for module in network.train().modules()]
    made = folded(network)
    assert all(vars(module) == attributes for module, attributes in before)
    assert_same(network, made, images(64))
    # From changed weights too, wherever they are kept.
    with torch.no_grad():
        for tensor in (*network.parameters(), *network.buffers()):
            tensor.mul_(1.1) if tensor.is_floating_point() else None
    made.refresh()
    assert_same(network, made, images(64))


@pytest.mark.parametrize(("name", "merged"), [("mobilenetv3_small_050", False), ("resnet10t", True)])
def test_norms_are_folded_where_they_are_only_that(name, merged):
    network = timm_network(name)
    norms = sum(isinstance(one, nn.BatchNorm2d) for one in network.modules())
    left = sum(issubclass(one, nn.BatchNorm2d) for one in kinds(folded(network)))
    assert left == (0 if merged else norms)


@pytest.mark.parametrize("name", ["vit_tiny_patch16_224", "test_efficientnet"])
def test_networks_of_timm_run_folded_in_low_precision(name):
    network = timm_network(name)
    exact = AutogradVictim(network.eval(), KERNELS).logits(images(64))
    network.float()
    keep_pixels_exact(network)
    autocast = VictimFactory(
        torch.bfloat16, True, True, None, KERNELS, lambda: torch.autocast("cpu", torch.bfloat16)
    )
    victim = autocast.victim(network, "student")
    victim.refresh()
    assert isinstance(victim, FoldedVictim)
    single = images(64).float()
    scale = exact.abs().max()
    assert (victim.logits(single).double() - exact).abs().max() < 0.1 * scale
    assert victim.input_gradient(single, torch.arange(2)).isfinite().all()


@pytest.mark.parametrize("name", ["test_vit", pytest.param("vgg11_bn", marks=pytest.mark.soak)])
def test_networks_of_timm_that_cannot_be_traced_are_attacked_as_they_are(name, logged):
    network = timm_network(name).eval()
    victim = VictimFactory(torch.float64, True, True, None, KERNELS, nullcontext).victim(network, "student")
    assert type(victim) is AutogradVictim
    assert len(logged) == 1
    assert logged[0].startswith("engine.fold: the student is run unfolded: torch.fx cannot trace it")


class Activated(nn.BatchNorm2d):
    """Norm and activation in one."""

    def forward(self, x):
        return F.elu(super().forward(x))


class Standardised(nn.Conv2d):
    """Weights are standardised in each pass."""

    def _conv_forward(self, x, weight, bias):
        return super()._conv_forward(x, weight / weight.flatten(1).norm(dim=1).view(-1, 1, 1, 1), bias)


class Half(nn.Linear):
    """Calls itself in another way."""

    def __call__(self, x):
        return super().__call__(x) / 2


class Doubled(nn.Linear):
    """Computes something else."""

    def forward(self, x):
        return 2 * super().forward(x)


class Computed(nn.Conv2d):
    """Has no weight of its own."""

    def __init__(self, *sizes, **settings):
        super().__init__(*sizes, **settings)
        self.raw = self._parameters.pop("weight")

    def __getattr__(self, name):
        if name == "weight" and "raw" in self._parameters:
            return 2 * self.raw
        return super().__getattr__(name)


class Renamed(nn.Conv2d):
    """Another name for the same."""


class Net(nn.Module):
    """A network of the user's own, whose parts can be exchanged."""

    def __init__(self, conv=nn.Conv2d, norm=nn.BatchNorm2d, linear=nn.Linear):
        super().__init__()
        torch.manual_seed(0)
        self.conv1, self.norm1 = conv(3, 6, 3, padding=1), norm(6)
        self.conv2, self.norm2 = conv(6, 6, 3, padding=1), norm(6)
        self.linear = linear(6, CLASSES)

    def forward(self, x, head=None, training_only=False):
        x = torch.relu(self.norm1(self.conv1(x)))
        x = torch.relu(self.norm2(self.conv2(x)) + x)
        x = F.dropout(torch.flatten(F.adaptive_avg_pool2d(x, 1), 1), 0.5, self.training)
        logits = self.linear(x)
        return logits + head(x) if head is not None else logits


def net(**parts):
    return moved(Net(**parts).double())


@pytest.mark.parametrize(
    ("parts", "left"),
    [
        ({}, ()),
        ({"conv": Renamed}, ()),
        ({"norm": nn.SyncBatchNorm}, ()),
        ({"norm": Activated}, (Activated, Activated)),
        ({"conv": Standardised}, (Standardised, Standardised)),
        ({"conv": Computed}, (Computed, Computed)),
        ({"linear": Doubled}, (Doubled,)),
        ({"conv": lambda *s, **k: nn.Conv2d(*s, **k, padding_mode="reflect")}, (nn.Conv2d, nn.Conv2d)),
        ({"conv": lambda *s, padding: nn.Conv2d(*s, padding="same")}, (nn.Conv2d, nn.Conv2d)),
    ],
    ids=[
        "none",
        "renamed conv",
        "synchronised norm",
        "activated norm",
        "standardised conv",
        "computed conv",
        "doubled linear",
        "reflecting conv",
        "conv of the same size",
    ],
)
def test_layers_that_compute_something_of_their_own_stay(parts, left):
    network = net(**parts).train()
    made = folded(network)
    found = [one for one in kinds(made) if issubclass(one, (nn.Conv2d, nn.Linear))]
    found += [one for one in kinds(made) if issubclass(one, nn.BatchNorm2d) and one is not nn.BatchNorm2d]
    assert found == list(left)
    assert_same(network, made, images())


def test_weight_norm_stays_live():
    network = net()
    weight_norm(network.conv2)
    made = folded(network)
    assert kinds(made).count(FoldedConv2d) == 1
    network.conv2.parametrizations.weight.original0.data.mul_(2)
    made.refresh()
    assert_same(network, made, images())


@pytest.mark.parametrize("part", ["", "conv1", "norm1", "linear"])
@pytest.mark.parametrize("kind", ["before", "after", "instead"])
def test_hooks_count_wherever_they_are(part, kind):
    network = net()
    module = network.get_submodule(part)
    forward = module.forward
    {
        "before": lambda: module.register_forward_pre_hook(lambda module, args: (args[0] - 0.3,)),
        "after": lambda: module.register_forward_hook(lambda module, args, result: result.square()),
        "instead": lambda: vars(module).update(forward=lambda x: forward(2 * x)),
    }[kind]()
    assert_same(network, folded(network), images())


def test_hooks_on_what_the_chain_passes_over_are_no_chain():
    network = nn.Sequential(
        nn.Conv2d(3, 4, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 7)
    )
    network[1].register_forward_hook(lambda module, args, result: -result)
    made = folded(network.double())
    assert_same(network, made, images())
    with pytest.raises(NotAChain, match="has hooks"):
        Chain(made.module, PlainConvolutions())


class InPlace(nn.Module):
    def __init__(self, change):
        super().__init__()
        self.conv, self.relu, self.linear = nn.Conv2d(3, 4, 3), nn.ReLU(inplace=True), nn.Linear(4, CLASSES)
        self.change = change

    def forward(self, x):
        x = self.conv(x)
        return self.linear(torch.flatten(F.adaptive_avg_pool2d(self.change(self, x) + x, 1), 1))


def add_in_place(module, x):
    y = module.relu(x + x)
    x += y
    return y


def change_numbers_and_tensors(module, x):
    batch = x.shape[0]
    doubled = batch
    doubled *= 2
    y = x * 2
    z = y
    y *= doubled
    y -= 1
    return (y + z) / batch


def test_what_changes_in_place_has_the_new_value_under_all_names():
    network = InPlace(change_numbers_and_tensors).double()
    assert_same(network, folded(network), images())


@pytest.mark.parametrize(
    "change",
    [
        lambda module, x: module.relu(x),
        lambda module, x: F.relu(x, inplace=True),
        lambda module, x: F.relu(x, True),
        add_in_place,
    ],
)
def test_what_changes_in_place_and_is_used_again_is_no_chain(change):
    network = InPlace(change).double()
    made = folded(network)
    assert_same(network, made, images())
    with pytest.raises(NotAChain, match="changes in place what is used elsewhere too"):
        Chain(made.module, PlainConvolutions())


def test_a_network_of_the_users_own_is_a_chain():
    network = net().train()
    made = folded(network)
    chain = ChainVictim(made, Chain(made.module, PlainConvolutions()), KERNELS, 1.0)
    live, labels = AutogradVictim(network.eval(), KERNELS), torch.arange(2)
    expected = live.input_gradient(images(), labels)
    torch.testing.assert_close(chain.input_gradient(images(), labels), expected, rtol=0, atol=1e-12)


def test_a_norm_of_vectors_is_no_chain():
    layers = nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.BatchNorm1d(4), nn.Linear(4, CLASSES)
    network = moved(nn.Sequential(nn.Conv2d(3, 4, 3), *layers).double())
    made = folded(network)
    assert_same(network, made, images())
    with pytest.raises(NotAChain):
        Chain(made.module, PlainConvolutions())


@pytest.mark.parametrize("exact", [False, True])
def test_counted_norms_and_exact_convolutions_are_folded(exact):
    network = net()
    split_batchnorms(network)
    if exact:
        keep_pixels_exact(network)
        assert type(network.conv1) is ExactConv2d
    made = folded(network.train())
    assert not any(issubclass(one, (SplitBatchNorm, nn.Conv2d, EvalBatchNorm)) for one in kinds(made))
    assert_same(network, made, images())


@pytest.mark.parametrize("parts", [{"conv": Standardised}, {"norm": Activated}])
def test_what_is_counted_or_exact_of_a_foreign_kind_stays(parts):
    network = net(**parts)
    keep_pixels_exact(network)
    for norm in (network.norm1, network.norm2):
        if isinstance(norm, Activated):
            norm.__class__ = type("CountedActivated", (SplitBatchNorm, Activated), {})
    network = copy.deepcopy(network)
    made = folded(network)
    assert any(issubclass(one, (Standardised, Activated)) for one in kinds(made))
    assert_same(network, made, images())


def test_pixels_of_a_foreign_first_layer_are_exact():
    network = Net(conv=Standardised).eval()
    batch = images().float()
    expected = network.conv1(batch)
    keep_pixels_exact(network)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(network.conv1(batch), expected.bfloat16())


def test_a_network_of_linear_layers_sees_exact_pixels_too():
    network = nn.Sequential(nn.Flatten(), nn.Linear(48, 8), nn.ReLU(), nn.Linear(8, 8), nn.Linear(8, CLASSES))
    keep_pixels_exact(network)
    first, second, last = [
        one for one in folded(network, torch.bfloat16).module.modules() if isinstance(one, FoldedLinear)
    ]
    assert [one.weight.dtype for one in (first, second, last)] == [
        torch.float32,
        torch.bfloat16,
        torch.float32,
    ]


class Tied(Net):
    """Reads a folded layer's weight, and a buffer, by itself."""

    def __init__(self):
        super().__init__()
        self.register_buffer("shift", torch.rand(6))

    def forward(self, x):
        x = torch.relu(self.norm1(self.conv1(x))) + (2 * self.shift).view(1, -1, 1, 1)
        return self.linear(x.mean((2, 3))) + self.conv1.weight.sum() + self.linear.bias


def test_what_is_read_without_a_layer_follows_the_network():
    network = moved(Tied().double())
    made = folded(network)
    assert_same(network, made, images())
    with torch.no_grad():
        network.shift.mul_(3)
        network.conv1.weight.mul_(2)
    made.refresh()
    assert_same(network, made, images())


class OwnTensor(Net):
    def forward(self, x):
        return super().forward(x) * torch.linspace(0, 1, CLASSES)


class Random(Net):
    def forward(self, x):
        return super().forward(x) * torch.rand(()).item()


class KeepsState(Net):
    """Notes what passes, which must not outlive the tracing."""

    def forward(self, x):
        self.seen = x
        return super().forward(x)


@pytest.mark.parametrize(
    ("kind", "said"),
    [
        (OwnTensor, "makes a tensor of its own"),
        (Random, "draws random numbers"),
        (lambda: Net(linear=Half), "its layer linear has a __call__ of its own"),
    ],
)
def test_what_would_be_frozen_is_not_folded(kind, said):
    before = torch.get_rng_state()
    network = kind()
    torch.set_rng_state(before)
    with pytest.raises(NotFoldable, match=said):
        folded(network)
    assert torch.equal(torch.get_rng_state(), before)


def test_tracing_leaves_no_trace():
    network = KeepsState().train()
    folded(network)
    assert not hasattr(network, "seen")
    assert all(module.training for module in network.modules())
    copy.deepcopy(network)


def test_without_a_plain_layer_there_is_nothing_to_fold():
    with pytest.raises(NotFoldable, match="no convolution or linear layer"):
        folded(net(conv=Standardised, linear=Doubled))
