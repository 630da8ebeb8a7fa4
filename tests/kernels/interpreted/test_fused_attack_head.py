"""The last layers in one launch: no farther from float64 than twice what plain PyTorch is."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from fastpeer.kernels.attack_head import attack_head as oracle
from fastpeer.kernels.fused.attack_head import attack_head
from tests.kernels.accuracy import assert_at_most_twice, errors, stored, worst

LAYOUT = torch.channels_last
SHAPES = [(3, 64, 4, 4, 10), (2, 40, 1, 1, 5), (1, 80, 8, 8, 100), (1, 48, 7, 7, 200), (2, 24, 2, 3, 1)]
"""Images, channels, height and width of the features; classes."""


def drawn(seed, device, shape, labels, dtype=torch.float32):
    batch, channels, height, width, classes = shape
    random = torch.Generator().manual_seed(seed)
    features = torch.randn(batch, channels, height, width, generator=random).to(dtype)
    weight = 3 * torch.randn(classes, channels, generator=random) / channels**0.5
    bias = torch.randn(classes, generator=random)
    target = torch.softmax(torch.randn(batch, classes, generator=random), 1)
    if labels:
        target = torch.randint(0, classes, (batch,), generator=random)
    made = features.contiguous(memory_format=LAYOUT), weight, bias, target
    return tuple(one.to(device) for one in made)


def compared(seed, device, shape, labels, relu):
    made = drawn(seed, device, shape, labels)
    found = attack_head(*made, 2.0, relu)
    assert found.is_contiguous(memory_format=LAYOUT)
    wide = [one.double() if one.is_floating_point() else one for one in made]
    return errors([found], [oracle(*made, 2.0, relu)], [oracle(*wide, 2.0, relu)])


@given(shape=st.sampled_from(SHAPES), labels=st.booleans(), relu=st.booleans())
def test_gradient_at_the_features(device, shape, labels, relu):
    assert_at_most_twice(worst([compared(seed, device, shape, labels, relu) for seed in range(3)]))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_the_result_is_rounded_once(device, dtype):
    low, *others = drawn(0, device, SHAPES[0], False, dtype)
    single = attack_head(low.float(), *others, relu=True)
    assert torch.equal(attack_head(low, *others, relu=True), stored(single, dtype))


def test_an_image_that_is_nan_or_of_no_class_spoils_no_other(device):
    features, weight, bias, labels = drawn(0, device, SHAPES[0], True)
    features[1, 5, 0, 0] = float("nan")
    labels[2] = 10
    spoilt = attack_head(features, weight, bias, labels).isnan().flatten(1)
    assert [spoilt.any(1).tolist(), spoilt.all(1).tolist()] == [[False, True, True]] * 2


FEATURES, WEIGHT, BIAS = torch.zeros(2, 8, 2, 2).to(memory_format=LAYOUT), torch.zeros(3, 8), torch.zeros(3)
TARGET = torch.zeros(2, 3)


@pytest.mark.parametrize(
    "arguments",
    [
        (FEATURES.double(), WEIGHT, BIAS, TARGET),
        (torch.zeros(2, 8, 2, 2), WEIGHT, BIAS, TARGET),
        (FEATURES[:, :4], WEIGHT, BIAS, TARGET),
        (FEATURES, WEIGHT.half(), BIAS, TARGET),
        (FEATURES, WEIGHT, BIAS[:2], TARGET),
        (FEATURES, WEIGHT, BIAS, TARGET[:1]),
        (FEATURES, WEIGHT, BIAS, torch.zeros(2, dtype=torch.int32)),
        (FEATURES, torch.zeros(1025, 8), torch.zeros(1025), torch.zeros(2, 1025)),
        (FEATURES, WEIGHT, BIAS, TARGET.to("meta")),
    ],
)
def test_what_does_not_fit_is_refused(arguments):
    with pytest.raises(ValueError, match=r"fused attack head: .* must be"):
        attack_head(*arguments)
