"""timm's networks, and the user's own classes."""

import sys
from contextlib import nullcontext
from pathlib import Path

import pytest
import torch

from fastpeer.device import placed
from fastpeer.errors import UserError
from fastpeer.evaluation.accuracy import classify_under_attack, evaluation_options
from fastpeer.evaluation.attacks import AttackSettings
from fastpeer.kernels.choice import torch_kernels
from fastpeer.models import build_model, check_model_name
from fastpeer.models.foreign import torchvision_advice
from fastpeer.victims.autograd import FoldedVictim
from fastpeer.victims.chain import ChainVictim
from fastpeer.victims.factory import VictimFactory
from tests.evaluation.streams import stream_of
from tests.models.timms import need_timm

NETS = """
import torch
from torch import nn


class ByNumClasses(nn.Module):
    def __init__(self, width=4, num_classes=2):
        super().__init__()
        self.conv, self.linear = nn.Conv2d(3, width, 3), nn.Linear(width, num_classes)
        self.dropout = nn.Dropout(0.5)

    def forward(self, x, features=False):
        return self.dropout(self.linear(torch.relu(self.conv(x)).mean((2, 3))))


class ByClasses(ByNumClasses):
    def __init__(self, *, classes):
        super().__init__(num_classes=classes)


class ByPosition(ByNumClasses):
    def __init__(self, outputs):
        super().__init__(num_classes=outputs)


class Holder:
    Inner = ByPosition


class NeedsMore(nn.Module):
    def __init__(self, num_classes, depth):
        super().__init__()


class Exits(nn.Module):
    def __init__(self, num_classes):
        raise SystemExit("over\\nand out")


class TwoOutputs(ByPosition):
    def forward(self, x):
        return super().forward(x), x


class Named(ByPosition):
    def forward(self, x):
        return {"features": x, "logits": super().forward(x)}


class Unflattened(ByPosition):
    def forward(self, x):
        return super().forward(x)[..., None, None]


class OtherShape(ByPosition):
    def forward(self, x):
        return super().forward(x)[:, 1:]


class OtherChannels(ByPosition):
    def forward(self, x):
        return super().forward(x[:, :1])


class Viewing(torch.nn.Module):
    def __init__(self, classes):
        super().__init__()
        self.conv, self.linear = torch.nn.Conv2d(3, 4, 1), torch.nn.Linear(256, classes)

    def forward(self, x):
        x = self.conv(x)
        return self.linear(x.view(x.size(0), -1))


class Subtracts(ByPosition):
    def forward(self, x):
        return super().forward(x.sub_(0.5))


class Rectifies(ByPosition):
    def forward(self, x):
        return super().forward(torch.relu_(x.view_as(x)))


class WritesData(ByPosition):
    def forward(self, x):
        x.data.mul_(0.5)
        return super().forward(x)


class AddsNoise(ByPosition):
    def forward(self, x):
        if self.training:
            x += torch.randn_like(x)
        return super().forward(x)


class Halved(ByPosition):
    def __init__(self, outputs):
        super().__init__(outputs)
        self.half()


class ComputesHalf(Halved):
    def forward(self, x):
        return super().forward(x.half())


class Draws(ByPosition):
    def forward(self, x):
        return super().forward(x) + torch.rand(7)


def not_a_network(classes):
    return {}


number = 3
"""


@pytest.fixture
def nets(tmp_path, monkeypatch):
    """Make the current folder one that contains a user's own networks."""
    folder = tmp_path / "foreign_nets"
    folder.mkdir()
    (folder / "small.py").write_text(NETS)
    (folder / "broken.py").write_text("raise ValueError('no\\nway')")
    monkeypatch.chdir(tmp_path)
    before = list(sys.path)
    yield
    assert sys.path == before
    for name in [name for name in sys.modules if name.partition(".")[0] == "foreign_nets"]:
        del sys.modules[name]


@pytest.mark.parametrize("name", ["ByNumClasses", "ByClasses", "ByPosition", "Holder.Inner"])
@pytest.mark.parametrize("size", [None, (8, 12)])
def test_own_class_is_built_for_the_classes(nets, name, size):
    network = build_model(f"foreign_nets.small:{name}", 7, size)
    assert network(torch.zeros(2, 3, 8, 12)).shape == (2, 7)
    # Running it once in eval mode has restored the modes.
    assert all(module.training for module in network.modules())


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("foreign_nets.smaller:Net", "foreign_nets.smaller cannot be imported (ModuleNotFoundError"),
        ("foreign_nets.broken:Net", "foreign_nets.broken cannot be imported (ValueError: no way)"),
        ("foreign_nets.small:ByClass", "has no ByClass; did you mean ByClasses?"),
        ("foreign_nets.small:number", "must be a class that builds networks, got int"),
        ("foreign_nets.small:NeedsMore", "cannot be built for 7 classes (TypeError: "),
        ("foreign_nets.small:Exits", "cannot be built for 7 classes (SystemExit: over and out)"),
        ("foreign_nets.small:not_a_network", "must return a torch.nn.Module, got dict"),
        (
            "foreign_nets.small:TwoOutputs",
            "must map 2 images of 8×8 to logits (2, 7), got tuple; let it return entry 0 of that",
        ),
        ("foreign_nets.small:Named", "got dict; let it return entry 'logits' of that"),
        ("foreign_nets.small:Unflattened", "got (2, 7, 1, 1); let it return .flatten(1) of that"),
        ("foreign_nets.small:OtherShape", "must map 2 images of 8×8 to logits (2, 7), got (2, 6)"),
        ("foreign_nets.small:OtherChannels", "does not accept images of 8×8 (RuntimeError: "),
        (
            "foreign_nets.small:ComputesHalf",
            "; it builds weights in float16, but must compute in the dtype of the images it is given",
        ),
    ],
)
def test_what_is_wrong_with_an_own_class_is_one_line(nets, name, message):
    with pytest.raises(UserError) as refusal:
        build_model(name, 7, (8, 8))
    assert message in str(refusal.value)
    assert "\n" not in str(refusal.value)


IN_PLACE = ["Subtracts", "Rectifies", "WritesData", "AddsNoise"]


@pytest.mark.parametrize("name", IN_PLACE)
def test_networks_that_change_their_images_in_place_are_given_copies(nets, name, logged):
    network = build_model(f"foreign_nets.small:{name}", 7, (8, 8))
    assert logged == [f"foreign_nets.small:{name} changes its images in place: it is given a copy of them"]
    images = torch.rand(4, 3, 8, 8)
    before = images.clone()
    for mode in (True, False):
        network.train(mode)(images)
        assert torch.equal(images, before)


@pytest.mark.parametrize("fold", [True, False])
@pytest.mark.parametrize("name", IN_PLACE[:2])
def test_networks_that_change_their_images_in_place_are_attacked(nets, name, fold):
    network = build_model(f"foreign_nets.small:{name}", 7, (8, 8)).eval()
    images, labels = torch.rand(4, 3, 8, 8), torch.arange(4)
    before = images.clone()
    victim = VictimFactory(torch.float32, fold, True, None, torch_kernels(), nullcontext).victim(network, "")
    victim.refresh()
    assert isinstance(victim, FoldedVictim) == fold
    leaf = images.clone().requires_grad_()
    torch.nn.functional.cross_entropy(network(leaf), labels, reduction="sum").backward()
    torch.testing.assert_close(victim.input_gradient(images, labels), leaf.grad)
    torch.testing.assert_close(victim.logits(images), network(images))
    assert torch.equal(images, before)


# So large an epsilon that AutoAttack is done at its first attack.
@pytest.mark.parametrize(("attack", "epsilon"), [("clean", 1e-6), ("pgd2", 1e-6), ("aa", 1.0)])
def test_networks_that_change_their_images_in_place_are_evaluated(nets, attack, epsilon):
    torch.manual_seed(0)
    network = build_model("foreign_nets.small:Subtracts", 7, (8, 8)).eval()
    images = torch.rand(2, 3, 8, 8)
    stream, before = stream_of(images, network(images).argmax(1)), images.clone()
    settings = AttackSettings(epsilon, 1e-6, 7, 0, 2, evaluation_options(torch.device("cpu")))
    found = classify_under_attack(attack, network, stream, settings, lambda done, stage="": None)
    assert found.correct.tolist() == [attack != "aa"] * 2
    assert torch.equal(images, before)


@pytest.mark.parametrize("chain", [True, False])
def test_networks_that_view_planes_run_in_nchw_memory(nets, logged, chain):
    network = build_model("foreign_nets.small:Viewing", 7, (8, 8))
    assert logged[0].startswith("foreign_nets.small:Viewing runs in NCHW memory")
    network = placed(network, torch.device("cpu"), torch.float64)
    images = torch.rand(3, 3, 8, 8, dtype=torch.float64).contiguous(memory_format=torch.channels_last)
    labels = torch.tensor([1, 0, 6])
    factory = VictimFactory(torch.float64, True, chain, None, torch_kernels(), nullcontext)
    victim = factory.victim(network.eval(), "student")
    victim.refresh()
    assert isinstance(victim, ChainVictim) == chain
    leaf = images.clone().requires_grad_()
    torch.nn.functional.cross_entropy(network(leaf), labels, reduction="sum").backward()
    torch.testing.assert_close(victim.input_gradient(images, labels), leaf.grad, rtol=0, atol=1e-12)
    torch.testing.assert_close(network.train()(images), victim.logits(images), rtol=0, atol=1e-12)


def test_networks_that_leave_their_images_alone_are_not_touched(nets, logged):
    network = build_model("foreign_nets.small:ByPosition", 7, (8, 8))
    assert not network._forward_pre_hooks
    assert logged == []


def test_half_precision_weights_are_converted_before_a_file_s_are_copied(nets, logged):
    network = build_model("foreign_nets.small:Halved", 7, (8, 8))
    assert {parameter.dtype for parameter in network.parameters()} == {torch.float32}
    assert logged[0].startswith("foreign_nets.small:Halved builds weights in float16: converted to float32")


def test_a_network_s_check_draws_no_random_numbers(nets):
    torch.manual_seed(0)
    build_model("foreign_nets.small:ByPosition", 7)
    expected = torch.rand(3)
    torch.manual_seed(0)
    build_model("foreign_nets.small:Draws", 7, (8, 8))
    assert torch.equal(torch.rand(3), expected)


@pytest.mark.parametrize(
    "name", ["timm:resnet18", "timm:vit_tiny_patch16_224.augreg_in21k", "nets:Net", "a.b:C.D"]
)
def test_foreign_names_are_valid_before_anything_is_imported(name):
    check_model_name(name)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("timm:", "timm:resnet18"),
        ("timm:hf-hub:a/b", "timm:resnet18"),
        ("nets:", "nets.small:Net"),
        (":Net", "nets.small:Net"),
        ("a-b:Net", "nets.small:Net"),
        ("nets/small.py:Net", "nets.small:Net"),
        ("a..b:Net", "nets.small:Net"),
    ],
)
def test_malformed_foreign_names_are_refused(name, message):
    with pytest.raises(UserError, match=message):
        check_model_name(name)


def test_networks_of_timm_have_the_classes():
    need_timm()
    network = build_model("timm:test_resnet", 7, (40, 32))
    assert network(torch.zeros(2, 3, 40, 32)).shape == (2, 7)
    assert network.training


def test_networks_that_are_made_for_one_size_are_made_for_the_images():
    need_timm()
    network = build_model("timm:vit_tiny_patch16_224", 7, (32, 48))
    assert network(torch.zeros(2, 3, 32, 48)).shape == (2, 7)
    assert network.get_parameter("pos_embed").shape[1] == 2 * 3 + 1


@pytest.mark.parametrize(
    ("name", "size", "message"),
    [
        ("resnet81", None, "timm has no network 'resnet81'; the nearest are timm:resnet"),
        ("convmixer_768_32", (4, 4), "the network timm:convmixer_768_32 does not accept images of 4×4 ("),
        ("vit_tiny_patch16_224", (8, 8), "timm:vit_tiny_patch16_224"),
    ],
)
def test_what_timm_cannot_build_is_one_line(name, size, message):
    need_timm()
    with pytest.raises(UserError) as refusal:
        build_model(f"timm:{name}", 7, size)
    assert message in str(refusal.value)
    assert "\n" not in str(refusal.value)


@pytest.mark.parametrize(
    ("version", "advice"),
    [
        ("2.6.0", "pip install --no-deps torchvision==0.21.0; if there is none yet, torch==2.5.0"),
        ("2.7.1", "pip install --no-deps torchvision==0.22.1;"),
        ("2.13.0+cpu", "torchvision==0.28.0+cpu from the index that torch 2.13.0+cpu came from;"),
        ("2.14.0.dev20261101+cu130", "is no release, for which there may be no torchvision: take one"),
        ("2.12.0a0+gitab12cd", "is no release"),
    ],
)  # fmt: skip
def test_the_torchvision_for_a_pytorch_is_named(version, advice):
    assert advice in torchvision_advice(version)


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (ModuleNotFoundError("No module named 'torchvision'", name="torchvision"), "needs torchvision"),
        (
            ImportError("undefined symbol: x", name="torchvision.ops"),
            "needs torchvision (undefined symbol: x)",
        ),
        (
            RuntimeError("operator torchvision::nms does not exist"),
            "cannot be imported (operator torchvision",
        ),
        (ModuleNotFoundError("No module named 'yaml'", name="yaml"), "needs timm (No module named 'yaml')"),
    ],
)
def test_what_timm_lacks_is_one_line_with_a_command(monkeypatch, error, said):
    def fail(name):
        raise error

    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    monkeypatch.setattr("importlib.import_module", fail)
    with pytest.raises(UserError) as refusal:
        build_model("timm:resnet18", 7)
    assert said in str(refusal.value)
    assert torchvision_advice() in str(refusal.value)
    assert "\n" not in str(refusal.value)


def test_missing_timm_is_one_line(monkeypatch):
    monkeypatch.setitem(sys.modules, "timm", None)
    with pytest.raises(UserError, match=r"needs timm; pip install timm"):
        build_model("timm:resnet18", 7)


def test_own_classes_of_an_installed_package_are_found(tmp_path: Path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    network = build_model("fastpeer.models.mobilenetv2:MobileNetV2", 7)
    assert network(torch.zeros(2, 3, 8, 8)).shape == (2, 7)
