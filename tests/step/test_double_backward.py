"""Second derivatives through the input gradient are PyTorch's own, and a first derivative makes no more."""

import copy
from contextlib import nullcontext

import pytest
import torch
from torch import nn
from torch.autograd import grad, gradcheck
from torch.nn.attention import SDPBackend, sdpa_kernel

from fastpeer.config import Config
from fastpeer.data.stream import Batch
from fastpeer.methods import loss_settings
from fastpeer.models import build_model
from fastpeer.step import double_backward
from fastpeer.step.double_backward import cheap_double_backward
from fastpeer.step.split_batchnorm import set_updates, split_batchnorms
from fastpeer.step.step import TrainingStep
from tests.models.timms import need_timm

CONVOLUTIONS = {
    "plain": {},
    "stride, padding": {"stride": 2, "padding": 1},
    "unequal": {"stride": (2, 1), "padding": (0, 2), "dilation": (1, 2)},
    "dilation": {"dilation": 2, "padding": 1},
    "groups": {"groups": 2, "padding": 1},
    "depthwise": {"groups": 4, "stride": 2},
    "bias": {"bias": True, "padding": 1},
    "bias, groups": {"bias": True, "groups": 2},
    "same": {"bias": True, "padding": "same", "kernel_size": 3},
}
NORMS = {
    "images": (nn.BatchNorm2d(4), (3, 4, 2, 3)),
    "vectors": (nn.BatchNorm1d(4), (5, 4)),
    "sequences": (nn.BatchNorm1d(4), (2, 4, 3)),
    "volumes": (nn.BatchNorm3d(4), (2, 4, 1, 2, 2)),
    "not affine": (nn.BatchNorm2d(4, affine=False), (3, 4, 2, 2)),
    "no statistics": (nn.BatchNorm2d(4, track_running_stats=False), (3, 4, 2, 2)),
    "nothing": (nn.BatchNorm2d(4, affine=False, track_running_stats=False), (3, 4, 2, 2)),
}


def convolution(kernel_size=(3, 2), bias=False, **how):
    return nn.Conv2d(4, 4, kernel_size, bias=bias, **how)


def drawn(layer, shape):
    """Return a layer in float64 with weights of no special values, and images for it."""
    torch.manual_seed(0)
    layer = copy.deepcopy(layer).double()
    for weight in layer.parameters():
        nn.init.normal_(weight)
    return layer, torch.randn(shape, dtype=torch.float64, requires_grad=True)


def called(layer):
    """Return the layer as a function of images and weights."""
    names = [name for name, _ in layer.named_parameters()]
    state = copy.deepcopy(dict(layer.named_buffers()))

    def function(images, *weights):
        with cheap_double_backward():
            values = dict(zip(names, weights, strict=True)) | copy.deepcopy(state)
            return torch.func.functional_call(layer, values, images)

    return function


LAYERS = {
    **{f"convolution, {name}": (convolution(**how), (2, 4, 5, 5)) for name, how in CONVOLUTIONS.items()},
    **{f"norm, {name}": one for name, one in NORMS.items()},
}


# What another case covers, too, of which each takes a second.
COVERED = {
    "convolution, plain",
    "convolution, dilation",
    "convolution, groups",
    "norm, volumes",
    "norm, nothing",
}


@pytest.mark.parametrize(
    "case", [pytest.param(case, marks=pytest.mark.soak if case in COVERED else ()) for case in LAYERS]
)
def test_derivatives_are_those_of_differences(case):
    layer, images = drawn(*LAYERS[case])
    function, weights = called(layer), tuple(layer.parameters())

    def input_gradient(at_out, images, *weights):
        return grad(function(images, *weights), images, at_out, create_graph=True)[0]

    assert gradcheck(function, (images, *weights))
    at_out = torch.randn_like(function(images, *weights)).requires_grad_()
    # What is differentiated here is by the ways that end at images, weights and the output's gradient.
    assert gradcheck(input_gradient, (at_out, images, *weights))


def derivatives(network, images, context, autocast=nullcontext):
    """Return logits, input gradient, and gradients of a loss of both at images and weights."""
    network = copy.deepcopy(network)
    images = images.detach().requires_grad_()
    with context(), autocast():
        logits = network(images)
    logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
    (own,) = grad(logits.logsumexp(1).sum() - logits[:, 0].sum(), images, create_graph=True)
    loss = (own.double() - 1).norm() + logits.square().mean().double()
    found = grad(loss, [images, *(one for one in network.parameters() if one.requires_grad)])
    return [logits, own, *found, *(one for one in network.buffers())]


def relative(found, expected):
    assert [one.dtype for one in found] == [one.dtype for one in expected]
    pairs = [(a.detach().double(), b.detach().double()) for a, b in zip(found, expected, strict=True)]
    # Biases in front of a BatchNorm have no gradient but rounding.
    return max(((a - b).norm() / (b.norm() + 1e-3)).item() for a, b in pairs)


def slow():
    return sdpa_kernel(SDPBackend.MATH)


def network_of(name, dtype=torch.float64, layout=torch.contiguous_format):
    torch.manual_seed(1)
    network = build_model(name, 10, (32, 32)).to(dtype).to(memory_format=layout)
    images = torch.rand(4, 3, 32, 32, dtype=dtype).contiguous(memory_format=layout)
    return network, images


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last], ids=["NCHW", "NHWC"])
@pytest.mark.parametrize(
    "name", ["resnet8", "wideresnet10x2", pytest.param("mobilenetv2", marks=pytest.mark.soak)]
)
def test_networks_have_the_derivatives_of_pytorch(name, layout):
    network, images = network_of(name, layout=layout)
    expected = derivatives(network, images, nullcontext)
    assert relative(derivatives(network, images, cheap_double_backward), expected) < 1e-11


@pytest.mark.parametrize("updates", [(0, 0), (0, 1), (1, 0, 0)])
def test_counted_norms_have_them(updates):
    network, images = network_of("resnet8")
    assert split_batchnorms(network)
    set_updates(network, updates)
    expected = derivatives(network, images, nullcontext)
    assert relative(derivatives(network, images, cheap_double_backward), expected) < 1e-12


@pytest.mark.parametrize("lower", [None, torch.bfloat16, torch.float16], ids=str)
def test_lower_precisions_are_no_farther_off_than_pytorch_s(lower):
    network, images = network_of("resnet8", torch.float32, torch.channels_last)
    exact = derivatives(copy.deepcopy(network).double(), images.double(), nullcontext)

    def errors(context):
        found = derivatives(network, images, context, lambda: torch.autocast("cpu", lower, lower is not None))
        assert [one.dtype for one in found[2:]] == [one.dtype for one in plain[2:]]
        return [relative([one.double()], [wide.double()]) for one, wide in zip(found, exact, strict=True)]

    plain = derivatives(network, images, nullcontext)
    pairs = list(zip(errors(cheap_double_backward), errors(nullcontext), strict=True))
    assert all(ours < 1.5 * theirs + 1e-6 for ours, theirs in pairs)
    assert sum(ours for ours, _ in pairs) < 1.1 * sum(theirs for _, theirs in pairs)


def test_float64_stays_float64_under_autocast():
    network, images = network_of("resnet8")
    expected = derivatives(network, images, nullcontext)

    def lowered():
        return torch.autocast("cpu", torch.bfloat16)

    assert relative(derivatives(network, images, cheap_double_backward, lowered), expected) < 1e-12


def test_frozen_weights_get_nothing_and_let_through():
    network, images = network_of("resnet8")
    for number, weight in enumerate(network.parameters()):
        weight.requires_grad_(number % 3 > 0)
    expected = derivatives(network, images, nullcontext)
    assert relative(derivatives(network, images, cheap_double_backward), expected) < 1e-12


def test_activations_in_place_are_allowed():
    network = nn.Sequential(
        nn.Conv2d(3, 4, 3), nn.SiLU(inplace=True), nn.Conv2d(4, 4, 3), nn.BatchNorm2d(4),
        nn.ReLU(inplace=True), nn.Flatten(), nn.LazyLinear(3),
    )  # fmt: skip
    network(torch.rand(2, 3, 8, 8))
    images = torch.rand(2, 3, 8, 8).double()
    network.double()
    expected = derivatives(network, images, nullcontext)
    assert relative(derivatives(network, images, cheap_double_backward), expected) < 1e-12


@pytest.mark.parametrize("name", ["timm:vit_tiny_patch16_224", "timm:resnet10t", "timm:convnext_atto"])
def test_timm_networks_have_them(name):
    need_timm()
    network, images = network_of(name)
    expected = derivatives(network, images, slow)
    assert relative(derivatives(network, images, cheap_double_backward), expected) < 1e-12


def test_attention_within_other_layers_can_be_differentiated_twice():
    torch.manual_seed(0)
    layer = nn.MultiheadAttention(4, 2, batch_first=True).double()
    tokens = torch.randn(2, 3, 4, dtype=torch.float64, requires_grad=True)
    with cheap_double_backward():
        out = layer(tokens, tokens, tokens, need_weights=False)[0]
    (own,) = grad(out.square().sum(), tokens, create_graph=True)
    own.square().sum().backward()
    assert layer.in_proj_weight.grad.norm() > 0


def test_an_input_gradient_makes_no_weight_gradients(monkeypatch):
    masks = []
    real = torch.ops.aten.convolution_backward

    class Spy:
        def __getattr__(self, name):
            return getattr(torch.ops.aten, name)

        def convolution_backward(self, *args):
            masks.append(args[-1])
            return real(*args)

    monkeypatch.setattr(double_backward, "aten", Spy())
    network, images = network_of("resnet8")
    images.requires_grad_()
    with cheap_double_backward():
        logits = network(images)
    (own,) = grad(logits.square().sum(), images, create_graph=True)
    layers = sum(isinstance(one, nn.Conv2d) for one in network.modules())
    assert masks == [[True, False, False]] * layers
    grad(own.square().sum(), list(network.parameters()))
    assert not any(mask[0] and any(mask[1:]) for mask in masks)


@pytest.mark.parametrize("layer", [nn.Conv2d(3, 3, 1), nn.BatchNorm2d(3)], ids=["convolution", "norm"])
def test_gradients_at_weights_cannot_be_differentiated_and_say_so(layer):
    layer, images = drawn(layer, (2, 3, 2, 2))
    with cheap_double_backward():
        out = layer(images)
    (own,) = grad(out.square().sum(), layer.weight, create_graph=True)
    with pytest.raises((NotImplementedError, RuntimeError), match=r"differentiate"):
        own.square().sum().backward()


def test_what_pytorch_refuses_is_refused():
    with cheap_double_backward():
        with pytest.raises(ValueError, match="more than 1 value"):
            nn.BatchNorm1d(3)(torch.rand(1, 3))
        with pytest.raises(RuntimeError, match="channels"):
            nn.Conv2d(3, 3, 1)(torch.rand(1, 4, 2, 2))


def nodes(network, images, context):
    """Name what leads from the logits back."""
    with context():
        waiting, found = [network(images).grad_fn], set()
    while waiting:
        node = waiting.pop()
        if node is not None and node not in found:
            found.add(node)
            waiting += [one for one, _ in node.next_functions]
    return {node.name() for node in found}


def test_only_training_in_the_context_is_replaced():
    network, images = network_of("resnet8")
    own = {"_ConvolutionOfInputBackward", "_ConvolutionOfWeightBackward", "_BatchNormBackward"}
    assert nodes(network, images, cheap_double_backward) >= own
    assert not nodes(network, images, nullcontext) & own
    network.eval()
    assert "_BatchNormBackward" not in nodes(network, images, cheap_double_backward)
    assert nodes(network, images, lambda: torch.no_grad()) == set()


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_kdiga_trains_a_vision_transformer(precision):
    need_timm()
    config = Config(method="kdiga", precision=precision, loss=loss_settings("kdiga")(gamma=20.0))
    name, roles = "timm:vit_tiny_patch16_224", ("student", "teacher")
    networks = {role: network_of(name, torch.float32)[0] for role in roles}
    networks["teacher"].eval().requires_grad_(False)
    nn.init.normal_(networks["teacher"].get_parameter("head.weight"))
    before = copy.deepcopy(networks["student"].state_dict())
    step = TrainingStep(config, config.table, networks)
    losses = step.train_on(Batch(torch.rand(4, 3, 32, 32), torch.arange(4)), 0).losses
    assert losses.isfinite().all()
    assert losses[2] > 0
    after = networks["student"].state_dict()
    assert all(after[name].isfinite().all() for name in after)
    assert any((after[name] - one).abs().max() > 0 for name, one in before.items() if "attn" in name)
