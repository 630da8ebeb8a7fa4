"""The convolution as a matrix product: no farther from float64 than twice what plain PyTorch is."""

from typing import NamedTuple

import pytest
import torch
import triton
from hypothesis import given
from hypothesis import strategies as st
from torch.nn import functional as F

from fastpeer.kernels.convolution import convolution as oracle
from fastpeer.kernels.convolution import convolution_input_gradient as gradient_oracle
from fastpeer.kernels.convolution_tiles import Tile
from fastpeer.kernels.fused.convolution import convolution, convolution_input_gradient
from fastpeer.kernels.sign_bits import above_zero, empty_signs, signs_of
from tests.kernels.accuracy import assert_at_most_twice, errors

LAYOUT = torch.channels_last
SHAPES = [(1, 16, 16, 4, 4), (2, 64, 64, 8, 4), (3, 8, 24, 8, 4), (2, 40, 16, 4, 8), (1, 16, 40, 16, 2)]
"""Images, channels into and out of the convolution, height, width."""
STRIDED = [(1, 16, 16, 4, 4), (2, 64, 24, 8, 4), (3, 48, 40, 4, 8), (1, 16, 72, 16, 2)]
if triton.__version__ < "3.5":
    # Its interpreter wants strides that are multiples of 16 elements, where GPUs want 16 bytes.
    SHAPES, STRIDED = (
        [one for one in shapes if one[1] % 16 == one[2] % 16 == 0] for shapes in (SHAPES, STRIDED)
    )
TILES = [Tile(32, 16, 4, 2), Tile(64, 64, 4, 3), Tile(128, 32, 4, 2)]


class Kind(NamedTuple):
    """A convolution, and how its data are moved."""

    shape: tuple[int, ...]
    side: int
    stride: int
    tile: Tile
    boxes: bool


def kinds(shapes, stride):
    return st.builds(
        Kind, st.sampled_from(shapes), st.sampled_from([1, 3]), st.just(stride), st.sampled_from(TILES),
        st.booleans(),
    )  # fmt: skip


KINDS = kinds(SHAPES, 1) | kinds(STRIDED, 2)
OF_RESNETS = [
    Kind((2, 64, 64, 8, 8), 3, 1, Tile(128, 64, 4, 2), True),
    *(
        Kind((2, 160, 72, 8, 8), side, stride, Tile(64, 64, 4, 2), boxes)
        for side in (1, 3) for stride in (1, 2) for boxes in (True, False)
    ),
]  # fmt: skip


def drawn(seed, device, kind):
    batch, into, out, height, width = kind.shape
    random = torch.Generator().manual_seed(seed)
    behind = (batch, out, height // kind.stride, width // kind.stride)
    before = (batch, into, height, width)
    shapes = {
        "x": before, "weight": (out, into, kind.side, kind.side), "like_out": behind, "residual": behind,
        "like_x": before, "mask": before,
    }  # fmt: skip
    made = {name: torch.randn(one, generator=random).half().to(device) for name, one in shapes.items()}
    made["weight"] /= kind.side * into**0.5
    made["bias"] = torch.randn(out, generator=random).to(device)
    return {
        name: one.contiguous(memory_format=LAYOUT) if one.dim() == 4 else one for name, one in made.items()
    }


def options(kind):
    return {"stride": kind.stride, "tile": kind.tile, "boxes": kind.boxes}


def forward_errors(kind, device, seed, summed, relu):
    made = drawn(seed, device, kind)
    residual = made["residual"] if summed else None
    found = convolution(made["x"], made["weight"], made["bias"], residual, relu, **options(kind))
    assert found.is_contiguous(memory_format=LAYOUT)
    wide = {name: one.double() for name, one in made.items()}
    truth = oracle(
        wide["x"], wide["weight"], wide["bias"], wide["residual"] if summed else None, relu, kind.stride
    )
    # As the step computes it without this kernel: each operation rounds.
    bias = made["bias"].to(made["x"].dtype)
    plain = F.conv2d(made["x"], made["weight"], bias, kind.stride, kind.side // 2)
    plain = plain + residual if summed else plain
    return errors([found], [plain.relu() if relu else plain], [truth])


def back_errors(kind, device, seed, summed, masked):
    made = drawn(seed, device, kind)
    gradient, weight = made["like_out"], made["weight"]
    around = made["like_x"] if summed else None, made["mask"] if masked else None
    found = convolution_input_gradient(gradient, weight, *around, **options(kind))
    assert found.is_contiguous(memory_format=LAYOUT)
    wide = made["like_x"].double() if summed else None
    truth = gradient_oracle(gradient.double(), weight.double(), wide, around[1], kind.stride)
    more = {"stride": kind.stride, "padding": kind.side // 2, "output_padding": kind.stride - 1}
    plain = F.conv_transpose2d(gradient, weight, **more)
    plain = plain + around[0] if summed else plain
    return errors([found], [plain * (around[1] > 0) if masked else plain], [truth])


@given(seed=st.integers(0, 99), kind=KINDS, summed=st.booleans(), relu=st.booleans())
def test_forward(device, seed, kind, summed, relu):
    assert_at_most_twice(forward_errors(kind, device, seed, summed, relu))


@given(seed=st.integers(0, 99), kind=KINDS, summed=st.booleans(), masked=st.booleans())
def test_back(device, seed, kind, summed, masked):
    assert_at_most_twice(back_errors(kind, device, seed, summed, masked))


@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("boxes", [True, pytest.param(False, marks=pytest.mark.soak)])
def test_signs_are_those_of_the_result_and_mask_as_it_does(device, stride, boxes):
    kind = Kind((1, 16, 24, 4, 2), 3, stride, TILES[0], boxes)
    made = drawn(0, device, kind)
    arguments = made["x"], made["weight"], made["bias"], made["residual"], True
    signs = empty_signs(made["like_out"].shape, device)
    found = convolution(*arguments, signs=signs, **options(kind))
    assert torch.equal(found, convolution(*arguments, **options(kind)))
    assert torch.equal(signs, signs_of(found))
    assert torch.equal(above_zero(signs), found > 0)
    back = [
        convolution_input_gradient(made["like_out"], made["weight"], made["like_x"], mask, **options(kind))
        for mask in (made["mask"], signs_of(made["mask"]))
    ]
    assert torch.equal(*back)


@pytest.mark.soak
@pytest.mark.parametrize("kind", OF_RESNETS, ids=str)
def test_layers_of_residual_networks(device, kind):
    assert_at_most_twice(forward_errors(kind, device, 0, True, True))
    assert_at_most_twice(back_errors(kind, device, 0, True, True))


def test_without_anything_around_it(device):
    made = drawn(0, device, Kind(SHAPES[0], 3, 1, TILES[0], True))
    found = convolution(made["x"], made["weight"])
    truth = oracle(made["x"].double(), made["weight"].double())
    assert ((found.double() - truth).abs().max() / truth.abs().max()).item() < 1e-3


def test_no_tap_reaches_beyond_its_own_channels(device):
    """What lies behind a row's last channel, in memory or in the weights, is not read as a channel."""
    kind = Kind((1, 16, 24, 4, 4), 1, 2, Tile(32, 64, 4, 2), True)
    made = drawn(0, device, kind)
    made["x"][:, :, :, 1::2] = made["x"][:, :, 1::2] = float("nan")
    assert convolution(made["x"], made["weight"], **options(kind)).isfinite().all()
    found = convolution_input_gradient(made["like_out"], made["weight"], **options(kind))
    assert found[:, :, 1::2].eq(0).all()
    assert found[:, :, :, 1::2].eq(0).all()


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
        (HALF, {"stride": 2}),
        (HALF, {"signs": torch.zeros(1, 4, 4, 8, dtype=torch.uint8)}),
        (HALF.repeat(1, 1, 128, 1), {}),
    ],
)
def test_what_does_not_fit_is_refused(x, options):
    weight = torch.zeros(8, 8, 3, 3, dtype=torch.float16).to(memory_format=LAYOUT)
    with pytest.raises(ValueError, match=r"fused convolution: .* must be"):
        convolution(x, weight, **options)


@pytest.mark.parametrize(
    "weight",
    [
        torch.zeros(8, 8, 5, 5),
        torch.zeros(8, 8, 3, 1),
        torch.zeros(8, 8, 3, 3),
        torch.zeros(8, 12, 3, 3).to(memory_format=LAYOUT),
        torch.zeros(8, 8, 3, 3).to(memory_format=LAYOUT).float(),
    ],
)
def test_other_weights_are_refused(weight):
    with pytest.raises(ValueError, match=r"fused convolution: .* must be"):
        convolution(HALF, weight.half() if weight.shape[2:] != (3, 3) else weight)
