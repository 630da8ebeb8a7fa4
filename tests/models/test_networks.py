from typing import TypeVar

import pytest
import torch
from torch import Tensor, fx, nn
from torch.nn import functional as F

from fastpeer.models import build_model, model_names
from fastpeer.models.mobilenetv2 import InvertedResidual
from fastpeer.models.preact_resnet import ActivatedShortcutBlock, PreActBlock
from fastpeer.models.wide_resnet import WideBlock

Network = TypeVar("Network", bound=nn.Module)

SMALL = ("resnet8", "preactresnet18", "preactresnet18-rice", "wideresnet10x1", "mobilenetv2")

COUNTS = {
    ("resnet8", 10): 78_042,
    ("resnet18", 10): 11_173_962,
    ("resnet18", 200): 11_271_432,
    ("resnet34", 10): 21_282_122,
    ("resnet50", 10): 23_520_842,
    ("preactresnet18", 10): 11_171_146,
    ("preactresnet18-rice", 10): 11_172_170,
    ("wideresnet28x10", 10): 36_479_194,
    ("wideresnet34x10", 10): 46_160_474,
    ("wideresnet70x16", 10): 266_796_506,
    ("mobilenetv2", 10): 2_296_922,
}

SHAPES: dict[str, dict[str, tuple[int, ...]]] = {
    "resnet8": {
        "conv1.weight": (16, 3, 3, 3),
        "layer1.0.conv2.weight": (16, 16, 3, 3),
        "layer2.0.shortcut.0.weight": (32, 16, 1, 1),
        "layer3.0.conv1.weight": (64, 32, 3, 3),
        "linear.weight": (10, 64),
    },
    "resnet18": {
        "conv1.weight": (64, 3, 3, 3),
        "bn1.running_mean": (64,),
        "bn1.num_batches_tracked": (),
        "layer1.1.conv2.weight": (64, 64, 3, 3),
        "layer2.0.conv1.weight": (128, 64, 3, 3),
        "layer2.0.shortcut.0.weight": (128, 64, 1, 1),
        "layer2.0.shortcut.1.weight": (128,),
        "layer4.1.bn2.bias": (512,),
        "linear.weight": (10, 512),
        "linear.bias": (10,),
    },
    "resnet34": {
        "layer1.2.conv1.weight": (64, 64, 3, 3),
        "layer2.3.bn1.weight": (128,),
        "layer3.5.conv2.weight": (256, 256, 3, 3),
        "layer4.2.conv2.weight": (512, 512, 3, 3),
        "linear.weight": (10, 512),
    },
    "resnet50": {
        "layer1.0.conv1.weight": (64, 64, 1, 1),
        "layer1.0.shortcut.0.weight": (256, 64, 1, 1),
        "layer2.0.conv1.weight": (128, 256, 1, 1),
        "layer2.0.conv2.weight": (128, 128, 3, 3),
        "layer2.0.conv3.weight": (512, 128, 1, 1),
        "layer3.5.bn3.weight": (1024,),
        "linear.weight": (10, 2048),
    },
    "preactresnet18": {
        "conv1.weight": (64, 3, 3, 3),
        "layer1.0.bn1.weight": (64,),
        "layer2.0.bn1.weight": (64,),
        "layer2.0.bn2.weight": (128,),
        "layer2.0.shortcut.0.weight": (128, 64, 1, 1),
        "layer4.1.conv2.weight": (512, 512, 3, 3),
        "linear.weight": (10, 512),
    },
    "preactresnet18-rice": {
        "layer1.0.bn1.weight": (64,),
        "layer2.0.shortcut.0.weight": (128, 64, 1, 1),
        "bn.weight": (512,),
        "bn.running_mean": (512,),
        "linear.weight": (10, 512),
    },
    "wideresnet34x10": {
        "conv1.weight": (16, 3, 3, 3),
        "block1.layer.0.bn1.weight": (16,),
        "block1.layer.0.conv1.weight": (160, 16, 3, 3),
        "block1.layer.0.convShortcut.weight": (160, 16, 1, 1),
        "block2.layer.4.conv2.weight": (320, 320, 3, 3),
        "block3.layer.0.convShortcut.weight": (640, 320, 1, 1),
        "bn1.weight": (640,),
        "fc.weight": (10, 640),
        "fc.bias": (10,),
    },
    "mobilenetv2": {
        "conv1.weight": (32, 3, 3, 3),
        "layers.0.conv1.weight": (32, 32, 1, 1),
        "layers.0.shortcut.0.weight": (16, 32, 1, 1),
        "layers.1.conv1.weight": (96, 16, 1, 1),
        "layers.1.conv2.weight": (96, 1, 3, 3),
        "layers.1.shortcut.1.weight": (24,),
        "layers.16.conv3.weight": (320, 960, 1, 1),
        "layers.16.bn3.weight": (320,),
        "conv2.weight": (1280, 320, 1, 1),
        "bn2.weight": (1280,),
        "linear.weight": (10, 1280),
    },
}

ABSENT = {
    "resnet8": ("layer4.0.conv1.weight", "layer1.0.shortcut.0.weight"),
    "resnet18": ("conv1.bias", "layer1.0.shortcut.0.weight", "layer2.1.shortcut.0.weight"),
    "resnet50": ("layer1.1.shortcut.0.weight",),
    "preactresnet18": ("bn1.weight", "layer1.0.shortcut.0.weight", "layer2.0.shortcut.1.weight"),
    "preactresnet18-rice": ("bn1.weight", "layer1.0.shortcut.0.weight", "layer2.0.shortcut.1.weight"),
    "wideresnet34x10": ("block1.layer.1.convShortcut.weight", "block1.layer.5.conv1.weight"),
    "mobilenetv2": ("layers.2.shortcut.0.weight", "layers.3.shortcut.0.weight", "layers.17.conv1.weight"),
}


def build(name: str, classes: int = 10) -> nn.Module:
    torch.manual_seed(0)
    return build_model(name, classes)


def build_without_values(name: str, classes: int = 10) -> nn.Module:
    with torch.device("meta"):
        return build_model(name, classes)


def images(size: int = 16) -> Tensor:
    return torch.rand(3, 3, size, size, generator=torch.Generator().manual_seed(1))


def with_random_statistics(module: Network) -> Network:
    """Make every batch norm of a network in evaluation mode do something."""
    generator = torch.Generator().manual_seed(2)
    for norm in module.modules():
        if isinstance(norm, nn.BatchNorm2d):
            for tensor in (norm.weight.data, norm.bias.data, norm.running_mean, norm.running_var):
                assert tensor is not None
                tensor.uniform_(0.5, 1.5, generator=generator)
    return module.eval()


@pytest.mark.parametrize("name", SHAPES)
def test_names_and_shapes_are_the_released_ones(name: str) -> None:
    weights = build_without_values(name).state_dict()
    assert {key: tuple(weights[key].shape) for key in SHAPES[name]} == SHAPES[name]
    assert not set(ABSENT.get(name, ())) & set(weights)


@pytest.mark.parametrize(("name", "classes"), COUNTS)
def test_parameter_count(name: str, classes: int) -> None:
    network = build_without_values(name, classes)
    assert sum(parameter.numel() for parameter in network.parameters()) == COUNTS[name, classes]


def test_every_shipped_network_is_counted() -> None:
    assert {name for name, _ in COUNTS} == set(model_names())


@pytest.mark.parametrize("size", [32, 64])
@pytest.mark.parametrize("name", model_names())
def test_logits_have_one_row_per_image(name: str, size: int) -> None:
    network = build_without_values(name, classes=7)
    assert network(torch.empty(2, 3, size, size, device="meta")).shape == (2, 7)


@pytest.mark.parametrize(
    ("name", "last_stage", "size"),
    [("resnet18", "layer4", 4), ("wideresnet10x1", "block3", 8), ("mobilenetv2", "layers", 4)],
)
def test_stages_shrink_the_planes_as_published(name: str, last_stage: str, size: int) -> None:
    network = build_without_values(name)
    shapes = []
    network.get_submodule(last_stage).register_forward_hook(lambda *args: shapes.append(args[-1].shape[2:]))
    network(images(size=32).to("meta"))
    assert shapes == [(size, size)]


@pytest.mark.parametrize("name", model_names())
def test_fx_traces_every_network(name: str) -> None:
    assert fx.symbolic_trace(build_without_values(name)).graph.find_nodes(op="call_module", target="conv1")


@pytest.mark.parametrize("name", SMALL)
def test_fx_trace_computes_the_same(name: str) -> None:
    network = build(name).eval()
    torch.testing.assert_close(fx.symbolic_trace(network)(images()), network(images()), rtol=0, atol=0)


@pytest.mark.parametrize("name", SMALL)
def test_channels_last_computes_the_same(name: str) -> None:
    network = build(name).double()
    expected = network(images().double())
    network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    logits = network(images().double().to(memory_format=torch.channels_last))
    torch.testing.assert_close(logits, expected, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("name", SMALL)
def test_training_uses_batch_and_evaluation_running_statistics(name: str) -> None:
    network = build(name)
    trained = network(images())
    assert not torch.equal(network.eval()(images()), trained)
    torch.testing.assert_close(network(images())[:1], network(images()[:1]), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(network.train()(images()), trained)


@pytest.mark.parametrize("name", SMALL)
def test_every_parameter_receives_a_gradient(name: str) -> None:
    network = build(name)
    network(images()).square().sum().backward()
    assert all(parameter.grad is not None for parameter in network.parameters())


def test_wide_resnet_starts_from_he_initialisation() -> None:
    network = build("wideresnet16x4")
    for module in network.modules():
        if isinstance(module, nn.Conv2d):
            size = module.kernel_size[0]
            std = (2 / (size * size * module.out_channels)) ** 0.5
            bound = 5 / module.weight.numel() ** 0.5  # five standard errors
            assert abs(module.weight.std().item() / std - 1) < bound
            assert abs(module.weight.mean().item() / std) < bound
        if isinstance(module, nn.BatchNorm2d):
            assert (module.weight == 1).all()
            assert (module.bias == 0).all()
    assert (network.get_parameter("fc.bias") == 0).all()


def convolve_twice(block: PreActBlock | WideBlock, activated: Tensor, stride: int) -> Tensor:
    out = F.conv2d(activated, block.conv1.weight, stride=stride, padding=1)
    return F.conv2d(block.bn2(out).clamp_min(0), block.conv2.weight, padding=1)


def test_preactivation_block_projects_its_raw_input() -> None:
    block = with_random_statistics(PreActBlock(3, 5, 2))
    x = images() - 0.5
    shortcut = F.conv2d(x, block.get_parameter("shortcut.0.weight"), stride=2)
    expected = convolve_twice(block, block.bn1(x).clamp_min(0), 2) + shortcut
    torch.testing.assert_close(block(x), expected)


def test_preactivation_block_of_rice_projects_its_activated_input() -> None:
    block = with_random_statistics(ActivatedShortcutBlock(3, 5, 2))
    activated = block.bn1(images() - 0.5).clamp_min(0)
    shortcut = F.conv2d(activated, block.get_parameter("shortcut.0.weight"), stride=2)
    torch.testing.assert_close(block(images() - 0.5), convolve_twice(block, activated, 2) + shortcut)


def test_network_of_rice_normalises_and_cuts_before_the_pooling() -> None:
    network = with_random_statistics(build("preactresnet18-rice"))
    planes: list[Tensor] = []
    network.get_submodule("layer4").register_forward_hook(lambda *args: planes.append(args[-1]))
    logits = network(images())
    cut = network.get_submodule("bn")(planes[0]).clamp_min(0)
    torch.testing.assert_close(logits, network.get_submodule("linear")(cut.mean((2, 3))))


def test_wide_block_projects_its_activated_input() -> None:
    block = with_random_statistics(WideBlock(3, 5, 2))
    activated = block.bn1(images() - 0.5).clamp_min(0)
    shortcut = F.conv2d(activated, block.get_parameter("convShortcut.weight"), stride=2)
    torch.testing.assert_close(block(images() - 0.5), convolve_twice(block, activated, 2) + shortcut)


@pytest.mark.parametrize("block_type", [PreActBlock, ActivatedShortcutBlock, WideBlock])
def test_block_of_equal_planes_keeps_its_raw_input(block_type: type[PreActBlock] | type[WideBlock]) -> None:
    block = with_random_statistics(block_type(3, 3, 1))
    x = images() - 0.5
    torch.testing.assert_close(block(x), convolve_twice(block, block.bn1(x).clamp_min(0), 1) + x)


@pytest.mark.parametrize(
    ("out_planes", "stride", "shortcut"), [(3, 1, "raw"), (5, 1, "projected"), (3, 2, "none")]
)
def test_inverted_residual_has_a_shortcut_at_stride_1(out_planes: int, stride: int, shortcut: str) -> None:
    block = with_random_statistics(InvertedResidual(3, out_planes, stride, expansion=6))
    x = images() - 0.5
    out = block.bn1(F.conv2d(x, block.conv1.weight)).clamp_min(0)
    out = F.conv2d(out, block.conv2.weight, stride=stride, padding=1, groups=18)
    out = block.bn3(F.conv2d(block.bn2(out).clamp_min(0), block.conv3.weight))
    added = {"raw": x, "projected": block.shortcut(x), "none": torch.zeros(())}
    torch.testing.assert_close(block(x), out + added[shortcut])
