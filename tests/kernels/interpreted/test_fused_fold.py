"""The Triton version of the fold."""

from dataclasses import replace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from fastpeer.kernels.fold import Fold as Oracle
from fastpeer.kernels.fused.fold import Fold
from tests.kernels.accuracy import assert_at_most_twice, errors, stored
from tests.kernels.fold_layers import in_float64, random_layer
from tests.kernels.layouts import laid_out_alike

# Relative error of one rounding; Triton's interpreter truncates to bfloat16 instead.
ROUNDING = {torch.bfloat16: 2**-7, torch.float16: 2**-10, torch.float32: 2**-22, torch.float64: 2**-51}

dtypes = st.sampled_from(list(ROUNDING))
sizes = st.integers(1, 8)
shapes = (
    st.tuples(sizes)
    | st.tuples(sizes, st.integers(1, 3000))
    | st.tuples(sizes, st.integers(1, 150), *[st.sampled_from([1, 3])] * 2)
)
layers = st.builds(
    random_layer,
    shapes,
    dtype=st.sampled_from([torch.float32, torch.float64]),
    weights=dtypes,
    biases=dtypes,
    bias=st.booleans(),
    norm=st.booleans(),
    affine=st.booleans(),
    channels_last=st.booleans(),
    eps=st.floats(1e-8, 1),
    seed=st.integers(0, 2**32),
)


def usable(layer):
    return layer.weight is not None or layer.mean is not None


def on(layer, device):
    tensors = {
        name: laid_out_alike(one, device)
        for name, one in vars(layer).items()
        if isinstance(one, torch.Tensor)
    }
    return replace(layer, **tensors)


@given(st.lists(layers.filter(usable), max_size=4))
def test_any_layers_are_folded_as_the_oracle_does(device, some):
    some = [on(layer, device) for layer in some]
    exact = [in_float64(layer) for layer in some]
    Fold(some)()
    Oracle(exact)()
    for layer, true in zip(some, exact, strict=True):
        for ours, theirs in (
            (layer.folded_weight, true.folded_weight),
            (layer.folded_bias, true.folded_bias),
        ):
            rounding = max(ROUNDING[ours.dtype], ROUNDING[layer.dtype])
            # A shift may be a small difference of larger numbers; float16 goes no lower than 6e-8.
            floor = 64 * ROUNDING[layer.dtype] + 6e-8 * (ours.dtype == torch.float16)
            torch.testing.assert_close(ours.double(), theirs, rtol=4 * rounding, atol=floor)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize(
    "shape",
    [
        (8, 3, 3, 3), (4, 130, 3, 3), (5, 512), (9, 1, 3, 3), (12,),
        *(
            pytest.param(one, marks=pytest.mark.soak)
            for one in ((64, 3, 3, 3), (16, 130, 3, 3), (100, 512), (96, 1, 3, 3), (128,))
        ),
    ],
)  # fmt: skip
def test_error_is_at_most_twice_plain_pytorchs(device, shape, dtype):
    ours = random_layer(shape, weights=dtype, biases=dtype, channels_last=True, device=device)
    plain = random_layer(shape, channels_last=True, device=device)
    exact = in_float64(plain)
    for fold, layer in ((Fold, ours), (Oracle, plain), (Oracle, exact)):
        fold([layer])()
    rounded = [stored(one, dtype) for one in (plain.folded_weight, plain.folded_bias)]
    results = [(layer.folded_weight, layer.folded_bias) for layer in (ours, exact)]
    assert_at_most_twice(errors(results[0], rounded, results[1]))


def test_layers_share_launches_by_their_dtypes(device):
    some = [random_layer((6, 3, 3, 3), weights=torch.bfloat16, seed=seed, device=device) for seed in range(9)]
    assert len(Fold(some)._launches) == 1
    assert len(Fold([*some, random_layer((6, 3, 3, 3), device=device)])._launches) == 2
    assert Fold([])._launches == []


def test_each_call_folds_what_the_parameters_are_by_then(device):
    layer = random_layer((6, 3, 3, 3), device=device)
    fold = Fold([layer])
    fold()
    before = layer.folded_bias.clone()
    layer.beta.add_(1)
    fold()
    torch.testing.assert_close(layer.folded_bias, before + 1)


def test_replaced_memory_is_refused(device):
    weight = torch.nn.Parameter(torch.randn(6, 3, device=device))
    fold = Fold([replace(random_layer((6, 3), device=device), weight=weight)])
    fold()
    weight.data = torch.randn(6, 3, device=device)
    with pytest.raises(ValueError, match="memory was replaced"):
        fold()


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"folded_weight": torch.zeros(6, 3, 3, 3).to(memory_format=torch.channels_last)}, "same strides"),
        ({"weight": torch.zeros(3, 6, 3, 3).transpose(0, 1)}, "same strides"),
        (dict.fromkeys(["weight", "folded_weight"], torch.zeros(3, 6, 3, 3).transpose(0, 1)), "same strides"),
        (dict.fromkeys(["weight", "folded_weight"], torch.zeros(6, 3, 3, 4)[..., :3]), "no gaps"),
        ({"beta": torch.zeros(12)[::2]}, "contiguous"),
        ({"mean": None}, "both mean and variance"),
    ],
)
def test_unusable_layouts_are_refused(device, change, says):
    with pytest.raises(ValueError, match=says):
        Fold([on(replace(random_layer((6, 3, 3, 3)), **change), device)])


def test_layer_without_weights_is_refused(device):
    with pytest.raises(ValueError, match=r"weights of a layer must be 1 to .*, got 0"):
        Fold([random_layer((6, 0), device=device)])


def test_captured_fold_reads_the_parameters_of_each_replay(device):
    if device.type != "cuda":
        pytest.skip("CUDA graphs need a GPU")
    layer = random_layer((6, 3, 3, 3), weights=torch.bfloat16, device=device)
    fold = Fold([layer])
    fold()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        fold()
    before = layer.folded_bias.clone()
    layer.beta.add_(1)
    graph.replay()
    torch.testing.assert_close(layer.folded_bias, before + 1)
