"""The folded student and its chain against the network itself, in float64 and in what training uses."""

import copy
from contextlib import nullcontext

import pytest
import torch
from torch import nn

from fastpeer.data.stream import Batch
from fastpeer.evaluation.accuracy import Evaluator
from fastpeer.evaluation.attacks import label_pgd
from fastpeer.kernels import convolution
from fastpeer.kernels.bias_sum_relu import bias_sum_relu
from fastpeer.kernels.choice import torch_kernels
from fastpeer.kernels.fold import Fold
from fastpeer.models import build_model
from fastpeer.step.compile import Compiler
from fastpeer.victims.autograd import AutogradVictim, FoldedVictim
from fastpeer.victims.chain import Chain, ChainVictim, NotAChain
from fastpeer.victims.compiled import CompiledVictim
from fastpeer.victims.convolution import CudnnConvolutions, OwnConvolutions, PlainConvolutions
from fastpeer.victims.factory import OwnKernels, VictimFactory, choose_convolutions
from fastpeer.victims.folding import FoldedNetwork, NotFoldable
from fastpeer.victims.onednn import OnednnConvolutions
from fastpeer.victims.pgd import pgd
from tests.victims.folds import skip_unless_it_runs

CLASSES = 7
KERNELS = torch_kernels()
MODELS = [
    "resnet8",
    "resnet18",
    "resnet50",
    "preactresnet18",
    "preactresnet18-rice",
    "wideresnet10x2",
    "mobilenetv2",
]


def moved(network):
    """Give a network statistics and BatchNorm parameters that are not those it was born with."""
    random = torch.Generator().manual_seed(5)
    for norm in (one for one in network.modules() if isinstance(one, nn.BatchNorm2d)):
        for tensor in (norm.weight, norm.running_var):
            tensor.data = torch.rand(tensor.shape, generator=random).to(tensor) + 0.5
        for tensor in (norm.bias, norm.running_mean):
            tensor.data = 0.1 * torch.randn(tensor.shape, generator=random).to(tensor)
    return network.eval()


def model(name):
    torch.manual_seed(0)
    return moved(build_model(name, CLASSES).double())


@pytest.fixture
def images():
    random = torch.Generator().manual_seed(1)
    return torch.rand(4, 3, 16, 16, generator=random).double().to(memory_format=torch.channels_last)


@pytest.fixture
def target():
    return torch.softmax(torch.randn(4, CLASSES, generator=torch.Generator().manual_seed(2)).double(), 1)


def folded(network, dtype=torch.float64):
    made = FoldedNetwork(network, dtype, Fold)
    made.refresh()
    return made


def chained(network, dtype=torch.float64, convolutions=None):
    made = folded(network, dtype)
    return ChainVictim(made, Chain(made.module, convolutions or PlainConvolutions()), KERNELS, 1.0)


def attack(victim, images, target):
    return pgd(victim, images, target, images, epsilon=8 / 255, step_size=2 / 255, steps=5, kernels=KERNELS)


SLOW = ("resnet18", "resnet50", "preactresnet18", "mobilenetv2")
"""Networks made of what others here are made of too, and one that is slow in float64."""


@pytest.mark.parametrize(
    "name",
    [pytest.param(name, marks=pytest.mark.soak if name in SLOW else ()) for name in MODELS],
)
def test_folded_attacks_reach_the_same_images(name, images, target):
    network, images, target = model(name), images[:2], target[:2]
    expected = attack(AutogradVictim(network, KERNELS), images, target)
    assert not torch.equal(expected, images)
    through_autograd = FoldedVictim(folded(network), KERNELS, 1.0, nullcontext)
    for victim in (through_autograd, chained(network)):
        found = attack(victim, images, target)
        torch.testing.assert_close(found, expected, rtol=0, atol=1e-10)
        torch.testing.assert_close(victim.logits(images), network(images), rtol=0, atol=1e-10)


@pytest.mark.parametrize("name", MODELS)
def test_input_gradient_in_float32_is_as_exact_as_the_networks_own(name, images, target):
    network = model(name)
    exact = AutogradVictim(network, KERNELS).input_gradient(images, target)
    network.float()
    single = images.float(), target.float()
    own = distance(AutogradVictim(network, KERNELS).input_gradient(*single), exact)
    for convolutions in (PlainConvolutions(), OnednnConvolutions()):
        found = chained(network, torch.float32, convolutions).input_gradient(*single)
        assert distance(found, exact) < 5 * own


@pytest.mark.parametrize("convolutions", [PlainConvolutions(), OnednnConvolutions()])
@pytest.mark.parametrize(
    "name", ["resnet8", "wideresnet10x2", pytest.param("mobilenetv2", marks=pytest.mark.soak)]
)
def test_input_gradient_in_bf16_is_as_exact_as_autocasts(name, convolutions):
    skip_unless_it_runs(convolutions, torch.bfloat16)
    network, random = model(name), torch.Generator().manual_seed(3)
    images = torch.rand(48, 3, 16, 16, generator=random).double().to(memory_format=torch.channels_last)
    labels = torch.randint(0, CLASSES, (48,), generator=random)
    exact = AutogradVictim(network, KERNELS).input_gradient(images, labels)
    network.float()
    single = images.float(), labels

    def autocast():
        return torch.autocast("cpu", torch.bfloat16)

    own = AutogradVictim(network, KERNELS, 1.0, autocast).input_gradient(*single)
    found = chained(network, torch.bfloat16, convolutions).input_gradient(*single)
    assert typical_distance(found, exact) < typical_distance(own, exact)


def distance(found, exact):
    return ((found.double() - exact).norm() / exact.norm()).item()


def typical_distance(found, exact):
    """The median image's, since a ReLU that flips throws single images far off."""
    distances = (found.double() - exact).flatten(1).norm(dim=1) / exact.flatten(1).norm(dim=1)
    return distances.median().item()


@pytest.mark.parametrize("convolutions", [PlainConvolutions(), OnednnConvolutions()])
def test_changed_weights_count_from_the_next_refresh_on(convolutions, images, target):
    network = model("resnet8").float()
    single = images.float(), target.float()
    victim = chained(network, torch.float32, convolutions)
    before = victim.input_gradient(*single)
    with torch.no_grad():
        for tensor in (*network.parameters(), *network.buffers()):
            if tensor.is_floating_point():
                tensor.mul_(1.1)
    assert torch.equal(victim.input_gradient(*single), before)
    victim.refresh()
    own = AutogradVictim(network, KERNELS).input_gradient(*single)
    torch.testing.assert_close(victim.input_gradient(*single), own, rtol=1e-3, atol=1e-5 * own.abs().max())


def test_folding_leaves_the_network_alone(images):
    network = model("wideresnet10x2").train()
    before = copy.deepcopy(network.state_dict())
    chained(network).logits(images)
    assert network.training
    torch.testing.assert_close(network.state_dict(), before, rtol=0, atol=0)


@pytest.mark.parametrize(("name", "alone"), [("resnet18", 0), ("mobilenetv2", 0), ("wideresnet10x2", 3)])
def test_only_norms_behind_a_sum_stay(name, alone):
    module = folded(model(name)).module
    assert sum("norm" in one for one, _ in module.named_modules() if one.endswith("norm")) == alone


class Plain(nn.Module):
    """A network that folds, with an operation that the chain has no rule for."""

    def __init__(self, last):
        super().__init__()
        self.conv, self.norm, self.linear = nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Linear(4, CLASSES)
        self.last = last

    def forward(self, x):
        return self.last(self.linear(torch.sigmoid(self.norm(self.conv(x))).mean((2, 3))))


class Branching(Plain):
    def forward(self, x):
        return super().forward(x if x.sum() > 0 else -x)


class Shared(Plain):
    def forward(self, x):
        return self.linear(torch.relu(self.norm(self.conv(x)) + self.norm(self.conv(2 * x))).mean((2, 3)))


class Cumulative(Plain):
    def __init__(self, last):
        super().__init__(last)
        self.norm = nn.BatchNorm2d(4, track_running_stats=False)


def test_a_network_without_rules_is_folded_but_runs_through_autograd(images, target, logged):
    network = moved(Plain(nn.Identity()).double())
    made = folded(network)
    with pytest.raises(NotAChain, match="sigmoid"):
        Chain(made.module, PlainConvolutions())
    victim = prepare().victim(network, "student")
    victim.refresh()
    assert isinstance(victim, FoldedVictim)
    assert len(logged) == 1
    assert "sigmoid" in logged[0]
    expected = AutogradVictim(network, KERNELS).input_gradient(images, target)
    torch.testing.assert_close(victim.input_gradient(images, target), expected, rtol=0, atol=1e-12)


@pytest.mark.parametrize("kind", [Branching, Shared, Cumulative])
def test_a_network_that_cannot_be_folded_is_attacked_as_it_is(kind, images, target, logged):
    network = kind(nn.Identity()).double().eval()
    with pytest.raises(NotFoldable):
        FoldedNetwork(network, torch.float64, Fold)
    victim = prepare().victim(network, "student")
    assert type(victim) is AutogradVictim
    assert len(logged) == 1
    assert logged[0].startswith("engine.fold: the student is run unfolded:")
    expected = AutogradVictim(network, KERNELS).input_gradient(images, target)
    assert torch.equal(victim.input_gradient(images, target), expected)


def test_labels_stand_for_one_hot_targets(images):
    victim = chained(model("resnet8"))
    labels = torch.arange(4)
    one_hot = nn.functional.one_hot(labels, CLASSES).double()
    assert torch.equal(victim.input_gradient(images, labels), victim.input_gradient(images, one_hot))


@pytest.mark.parametrize(
    ("fold", "chain"),
    [*(pytest.param(*one, marks=pytest.mark.soak) for one in ((False, False), (True, False))), (True, True)],
)
def test_compiled_gradients_agree(fold, chain, images, target, logged):
    network = model("resnet8")
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()
    victim = prepare(fold=fold, chain=chain, compile=True).victim(network, "student")
    victim.refresh()
    live = AutogradVictim(network, KERNELS)
    for goal in (target, torch.arange(4)):
        expected = live.input_gradient(images, goal)
        torch.testing.assert_close(victim.input_gradient(images, goal), expected, rtol=0, atol=1e-12)
    torch.testing.assert_close(victim.logits(images), network(images), rtol=0, atol=1e-12)
    assert not logged
    evaluate_in_autocast(network, victim, images)
    # Labels run what was compiled for probabilities, and an evaluation what was compiled for the training.
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] == 2


def evaluate_in_autocast(network, victim, images):
    """Attack as the selection does in a run with --amp."""
    attack = label_pgd(victim, KERNELS, 8 / 255, 2 / 255, 2, seed=0)
    Evaluator({"it": network}, attack, lambda: torch.autocast("cpu", torch.bfloat16)).correct(
        [Batch(images, torch.arange(4))]
    )
    assert all(weight.grad is None for weight in network.parameters())


def prepare(fold=True, chain=True, compile=False, dtype=torch.float64):
    compiler = Compiler() if compile else None
    return VictimFactory(dtype, fold, chain, compiler, KERNELS, nullcontext)


def test_where_cudnn_refuses_plain_operators_take_over_with_one_line(images, target, logged):
    network = model("resnet8")
    victim = chained(network, convolutions=CudnnConvolutions(bias_sum_relu))
    expected = chained(network).input_gradient(images, target)
    # There is no cuDNN on a CPU, so that it refuses at once.
    for _ in range(2):
        found = victim.input_gradient(images, target)
        torch.testing.assert_close(found, expected, rtol=0, atol=1e-12)
    assert len(logged) == 1
    assert logged[0].startswith("engine.chain: convolutions run without fused epilogues")


def counting(calls):
    """Return the plain formulas of our own convolutions, which write down how they are called."""

    def forward(x, weight, bias, residual, relu, stride, signs=None):
        calls.append("forward" if signs is None else "signs")
        return convolution.convolution(x, weight, bias, residual, relu, stride, signs=signs)

    def back(gradient, weight, residual, mask, stride):
        calls.append("back" if mask is None else "by signs" if mask.dtype == torch.uint8 else "masked")
        return convolution.convolution_input_gradient(gradient, weight, residual, mask, stride)

    return forward, back


def test_own_convolutions_take_what_they_are_given_and_the_masks_around_them(images, target):
    network = model("resnet18").float().to(memory_format=torch.channels_last)
    single = images.float(), target.float()
    plain = chained(network, torch.bfloat16, PlainConvolutions()).input_gradient(*single)
    exact = chained(copy.deepcopy(network).double()).input_gradient(images, target)
    # All but the first layer, and but the three at stride 2 and the three of 1×1; then these, too.
    expected = {False: (13, 13, 0), True: (19, 16, 3)}
    for others, counts in expected.items():
        calls = []
        own = OwnConvolutions(bias_sum_relu, *counting(calls), others)
        found = chained(network, torch.bfloat16, own).input_gradient(*single)
        assert tuple(map(calls.count, ("forward", "masked", "back"))) == counts
        errors = [(one - exact).norm() / exact.norm() for one in (found, plain)]
        assert errors[0] <= 1.2 * errors[1]


def test_what_a_relu_let_through_is_read_from_its_signs(images, target):
    network = model("resnet8").float().to(memory_format=torch.channels_last)
    single = images.float(), target.float()
    calls, gradients = {False: [], True: []}, []
    for keeps_signs, of in calls.items():
        own = OwnConvolutions(bias_sum_relu, *counting(of), True, keeps_signs)
        victim = chained(network, torch.bfloat16, own)
        gradients.append(victim.input_gradient(*single))
    assert torch.equal(*gradients)
    # All masks but the one behind the first layer, which is not ours; behind the last ReLU is no convolution.
    names = ("forward", "signs", "masked", "by signs", "back")
    assert [tuple(map(of.count, names)) for of in calls.values()] == [(8, 0, 6, 0, 2), (3, 5, 1, 5, 2)]
    # Whoever goes no way back keeps none.
    calls[True].clear()
    victim.logits(single[0])
    assert "signs" not in calls[True]


def test_chains_of_own_convolutions_are_not_compiled():
    network = model("resnet8").float()
    for own in (False, True):
        factory = VictimFactory(
            torch.bfloat16, True, True, Compiler(), KERNELS, nullcontext, OwnKernels(convolutions=own)
        )
        assert isinstance(factory.victim(network, "student"), ChainVictim if own else CompiledVictim)


def test_a_processor_without_bf16_convolves_by_plain_operators(monkeypatch):
    def chosen(dtype):
        return type(choose_convolutions(torch.device("cpu"), dtype, KERNELS))

    for supported in (True, False):
        monkeypatch.setattr(
            torch.ops.mkldnn, "_is_mkldnn_bf16_supported", lambda answer=supported: answer, raising=False
        )
        assert chosen(torch.float32) is OnednnConvolutions
        assert chosen(torch.bfloat16) is (OnednnConvolutions if supported else PlainConvolutions)
    assert chosen(torch.float64) is PlainConvolutions


@pytest.mark.parametrize("convolutions", [PlainConvolutions(), OnednnConvolutions()])
def test_autocast_around_a_chain_does_not_round_the_pixels(convolutions, images, target):
    skip_unless_it_runs(convolutions, torch.bfloat16)
    network = model("resnet8").float()
    single = images.float(), target.float()
    victim = chained(network, torch.bfloat16, convolutions)
    expected = victim.input_gradient(*single)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(victim.input_gradient(*single), expected)
