"""BatchNorms folded into what precedes them."""

from dataclasses import replace

import pytest
import torch
from torch import nn

from fastpeer.kernels.fold import Fold, FoldedLayer
from tests.kernels.fold_layers import random_layer


def perturbed(norm):
    for one in (norm.weight, norm.bias, norm.running_mean):
        nn.init.normal_(one)
    nn.init.uniform_(norm.running_var, 0.1, 2)
    return norm.double().eval()


def layer_of(module, norm):
    weight = norm.weight if module is None else module.weight
    return FoldedLayer(
        weight=None if module is None else module.weight,
        bias=None if module is None else module.bias,
        gamma=None if norm is None else norm.weight,
        beta=None if norm is None else norm.bias,
        mean=None if norm is None else norm.running_mean,
        variance=None if norm is None else norm.running_var,
        eps=1e-5 if norm is None else norm.eps,
        folded_weight=torch.empty_like(weight),
        folded_bias=torch.empty(len(weight), dtype=torch.float64),
    )


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("groups", [1, 2])
def test_folded_convolution_is_convolution_and_norm(bias, groups):
    module, norm = nn.Conv2d(4, 6, 3, bias=bias, groups=groups).double(), perturbed(nn.BatchNorm2d(6))
    layer = layer_of(module, norm)
    Fold([layer])()
    images = torch.randn(2, 4, 5, 5, dtype=torch.float64)
    folded = nn.functional.conv2d(images, layer.folded_weight, layer.folded_bias, groups=groups)
    torch.testing.assert_close(folded, norm(module(images)), rtol=1e-12, atol=1e-12)


def test_folded_linear_layer_is_linear_layer_and_norm():
    module, norm = nn.Linear(4, 6).double(), perturbed(nn.BatchNorm1d(6))
    layer = layer_of(module, norm)
    Fold([layer])()
    rows = torch.randn(3, 4, dtype=torch.float64)
    folded = nn.functional.linear(rows, layer.folded_weight, layer.folded_bias)
    torch.testing.assert_close(folded, norm(module(rows)), rtol=1e-12, atol=1e-12)


def test_norm_on_its_own_is_a_scale_and_a_shift():
    norm = perturbed(nn.BatchNorm2d(6))
    layer = layer_of(None, norm)
    Fold([layer])()
    images = torch.randn(2, 6, 5, 5, dtype=torch.float64)
    scale, shift = (one.view(-1, 1, 1) for one in (layer.folded_weight, layer.folded_bias))
    torch.testing.assert_close(images * scale + shift, norm(images), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("bias", [True, False])
def test_layer_without_norm_is_copied(bias):
    layer = random_layer((6, 4), weights=torch.bfloat16, biases=torch.bfloat16, norm=False, bias=bias)
    Fold([layer])()
    assert torch.equal(layer.folded_weight, layer.weight.bfloat16())
    assert torch.equal(layer.folded_bias, layer.bias.bfloat16() if bias else torch.zeros(6).bfloat16())


def test_norm_without_affine_parameters_standardizes():
    layer = random_layer((6,), affine=False, eps=0.5)
    Fold([layer])()
    deviations = (layer.variance + 0.5).sqrt()
    torch.testing.assert_close(layer.folded_weight, 1 / deviations)
    torch.testing.assert_close(layer.folded_bias, -layer.mean / deviations)


def test_each_call_folds_what_the_parameters_are_by_then():
    layers = [random_layer((6, 3, 3, 3), channels_last=True), random_layer((5,), seed=1)]
    fold = Fold(layers)
    fold()
    before = [layer.folded_bias.clone() for layer in layers]
    for layer in layers:
        layer.beta.add_(1)
    fold()
    for layer, bias in zip(layers, before, strict=True):
        torch.testing.assert_close(layer.folded_bias, bias + 1)


LAYER = random_layer((6, 3, 3, 3))


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"mean": None}, "both mean and variance"),
        ({"mean": None, "variance": None}, "both mean and variance"),
        ({"weight": None}, "no bias"),
        ({"weight": None, "bias": None}, "fit the weight's shape"),
        ({"weight": torch.zeros(6)}, "two dimensions"),
        ({"folded_weight": torch.zeros(6, 3, 3, 2)}, "fit the weight's shape"),
        ({"beta": torch.zeros(5)}, r"shape \(6,\)"),
        ({"folded_bias": torch.zeros(())}, "shape"),
        ({"beta": torch.zeros(6).double()}, "all float32 or all float64"),
        ({"weight": LAYER.weight.half()}, "all float32 or all float64"),
        ({"folded_bias": torch.zeros(6).long()}, "floating"),
        ({"folded_bias": torch.zeros(6, device="meta")}, "one device"),
    ],
)
def test_tensors_that_do_not_fit_are_refused(change, says):
    with pytest.raises(ValueError, match=says):
        Fold([replace(LAYER, **change)])
