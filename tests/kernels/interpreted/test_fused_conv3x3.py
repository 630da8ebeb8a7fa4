"""The convolution as a matrix product: no farther from float64 than twice what plain PyTorch is."""

import pytest
import torch
import triton
from hypothesis import given
from hypothesis import strategies as st

from fastpeer.kernels.conv3x3 import convolution as oracle
from fastpeer.kernels.conv3x3 import convolution_input_gradient as gradient_oracle
from fastpeer.kernels.fused.conv3x3 import Tile, convolution, convolution_input_gradient
from tests.kernels.accuracy import assert_at_most_twice, errors

LAYOUT = torch.channels_last
SHAPES = [(1, 16, 16, 4, 4), (2, 64, 64, 8, 8), (3, 8, 24, 8, 4), (2, 40, 16, 4, 8), (1, 16, 40, 16, 2)]
"""Images, channels into and out of the convolution, height, width."""
if triton.__version__ < "3.5":
    # Its interpreter wants strides that are multiples of 16 elements, where GPUs want 16 bytes.
    SHAPES = [one for one in SHAPES if one[1] % 16 == one[2] % 16 == 0]
TILES = [Tile(32, 16, 4, 2), Tile(64, 64, 4, 3), Tile(128, 32, 4, 2)]


def drawn(seed, device, shape):
    batch, into, out, height, width = shape
    random = torch.Generator().manual_seed(seed)
    shapes = {
        "x": (batch, into, height, width), "weight": (out, into, 3, 3),
        "like_out": (batch, out, height, width), "like_x": (batch, into, height, width),
        "mask": (batch, into, height, width),
    }  # fmt: skip
    made = {name: torch.randn(one, generator=random).half().to(device) for name, one in shapes.items()}
    made["weight"] /= 3 * into**0.5
    made["bias"] = torch.randn(out, generator=random).to(device)
    return {
        name: one.contiguous(memory_format=LAYOUT) if one.dim() == 4 else one for name, one in made.items()
    }


def plain(x, weight, bias, residual, relu):
    """As the step computes it without this kernel: each operation rounds."""
    out = torch.nn.functional.conv2d(x, weight, bias.to(x.dtype), padding=1) + residual
    return out.relu() if relu else out


@given(
    seed=st.integers(0, 99), shape=st.sampled_from(SHAPES), tile=st.sampled_from(TILES), summed=st.booleans(),
    relu=st.booleans(),
)  # fmt: skip
def test_forward(device, seed, shape, tile, summed, relu):
    made = drawn(seed, device, shape)
    residual = made["like_out"] if summed else torch.zeros_like(made["like_out"])
    found = convolution(made["x"], made["weight"], made["bias"], residual if summed else None, relu, tile)
    assert found.is_contiguous(memory_format=LAYOUT)
    wide = {name: one.double() for name, one in made.items()}
    truth = oracle(wide["x"], wide["weight"], wide["bias"], residual.double(), relu)
    theirs = plain(made["x"], made["weight"], made["bias"], residual, relu)
    assert_at_most_twice(errors([found], [theirs], [truth]))


@given(
    seed=st.integers(0, 99), shape=st.sampled_from(SHAPES), tile=st.sampled_from(TILES), summed=st.booleans(),
    masked=st.booleans(),
)  # fmt: skip
def test_back(device, seed, shape, tile, summed, masked):
    made = drawn(seed, device, shape)
    residual, mask = made["like_x"] if summed else None, made["mask"] if masked else None
    found = convolution_input_gradient(made["like_out"], made["weight"], residual, mask, tile)
    wide = {name: one.double() for name, one in made.items()}
    truth = gradient_oracle(wide["like_out"], wide["weight"], wide["like_x"] if summed else None, mask)
    theirs = torch.nn.functional.conv_transpose2d(made["like_out"], made["weight"], padding=1)
    theirs = theirs + residual if summed else theirs
    theirs = theirs * (mask > 0) if masked else theirs
    assert_at_most_twice(errors([found], [theirs], [truth]))


def test_without_anything_around_it(device):
    made = drawn(0, device, SHAPES[0])
    found = convolution(made["x"], made["weight"])
    truth = oracle(made["x"].double(), made["weight"].double())
    assert ((found.double() - truth).abs().max() / truth.abs().max()).item() < 1e-3


HALF = torch.zeros(1, 8, 4, 4, dtype=torch.float16).to(memory_format=LAYOUT)


@pytest.mark.parametrize(
    ("x", "options"),
    [
        (HALF.float(), {}),
        (HALF[:, :, :3], {}),
        (HALF.repeat(1, 2, 1, 1), {}),
        (torch.zeros(1, 8, 4, 4).half(), {}),
        (HALF, {"residual": HALF[:, :, :2]}),
        (HALF, {"residual": HALF.float()}),
        (HALF, {"bias": torch.zeros(4)}),
        (HALF[0], {}),
    ],
)
def test_what_does_not_fit_is_refused(x, options):
    weight = torch.zeros(8, 8, 3, 3, dtype=torch.float16).to(memory_format=LAYOUT)
    with pytest.raises(ValueError, match=r"fused convolution: .* must be"):
        convolution(x, weight, **options)


@pytest.mark.parametrize(
    "weight",
    [
        torch.zeros(8, 8, 1, 1),
        torch.zeros(8, 8, 3, 3),
        torch.zeros(8, 12, 3, 3).to(memory_format=LAYOUT),
        torch.zeros(8, 8, 3, 3).to(memory_format=LAYOUT).float(),
    ],
)
def test_other_weights_are_refused(weight):
    with pytest.raises(ValueError, match=r"fused convolution: .* must be"):
        convolution(HALF, weight.half() if weight.shape[2] == 1 else weight)
