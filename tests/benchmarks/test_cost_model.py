"""The predicted launches are those that a profiler saw; their bytes and operations are a layer's."""

from pathlib import Path

import pytest

from benchmarks.speed.cost_model import profile_of, rate
from benchmarks.speed.launch_costs import GPUS, Launch, Reached, by_kernel
from benchmarks.speed.launches import BACK, CONVOLUTION, MASK, SUM, Parts, step_launches
from benchmarks.speed.layer_cases import shapes_of
from benchmarks.speed.layer_costs import layer_costs, norms_of
from benchmarks.steps.cases import Case
from fastpeer.errors import UserError

PROFILE = Path(__file__).parents[2] / "benchmarks/results/2026-11-27-nvidia-h200/3-throughput-own.json"
CASE = Case("resnet18", "cifar10", 128)
MEASURED = Parts(other_convolutions=False, sign_bits=False, stem_step=False, head=False)
"""Those that ran when that was profiled."""


@pytest.fixture(scope="module")
def launches():
    return step_launches(CASE, MEASURED)


def test_as_many_kernels_are_launched_as_were_measured(launches):
    measured = profile_of(PROFILE, CASE, "H200")
    predicted = by_kernel(launches, GPUS["H200"], Reached())
    same = (
        "_convolution", CONVOLUTION + BACK, SUM, MASK, "_statistics", "_normalise", "_gradient_sums",
        "_input_gradient", "_bias_sum_relu", "_forward", "_back", "_pgd_update", "_attack_gradient",
        "loss_kernel",
    )  # fmt: skip
    assert {name: predicted[name][0] for name in same} == {name: measured[name][0] for name in same}
    # The profiler saw the first layers of both trained networks among the others.
    assert predicted[CONVOLUTION][0] == measured[CONVOLUTION][0] - 2


def test_bytes_and_operations_of_a_step_are_those_counted_by_hand(launches):
    plane, weight = 128 * 64 * 32 * 32 * 2, 64 * 64 * 9 * 2
    flop = 2 * 128 * 64 * 32 * 32 * 64 * 9
    # A block's first convolution; its second with the residual; back with the mask, and with both.
    expected = [Launch("_convolution", flop, count * plane + weight) for count in (2, 3, 3, 4)]
    for launch in expected:
        assert launch in launches
    # The attack: twenty passes of ten steps and the peer's, all but first, strided and 1×1 layers.
    assert sum(launch.kernel == "_convolution" for launch in launches) == 21 * 13


def test_layers_have_the_launches_of_the_step():
    costs = list(layer_costs(CASE))
    of_step = {(round(launch.flop), launch.bytes) for launch in step_launches(CASE, Parts())}
    plane, weight = 128 * 64 * 32 * 32 * 2, 64 * 64 * 9 * 2
    flop = 2 * 128 * 64 * 32 * 32 * 64 * 9
    first, back = costs[:2]
    assert first.library == (Launch("convolution", flop, 2 * plane + weight), Launch("pass", 0, 3 * plane))
    # With residual and signs; back with the sum and the mask's signs.
    for cost in (first, back):
        assert cost.own == (Launch("own", flop, (3 + 1 / 16) * plane + weight),)
        assert (flop, cost.own[0].bytes) in of_step
    assert sum(norms_of(CASE).values()) == 20
    assert len(costs) == 2 * (len(shapes_of("resnet18")) + len(norms_of(CASE)))


def test_other_convolutions_take_what_follows_them_too(launches):
    every = step_launches(CASE, Parts(sign_bits=False))
    of_attack = [launch for launch in every if launch.kernel == "_convolution"]
    assert len(of_attack) == 21 * 13 + 21 * 6
    # The trained networks' own are left to cuDNN, and a shortcut's 1×1 reads every fourth pixel.
    assert sum(launch.kernel == CONVOLUTION + BACK for launch in every) == 2 * 19
    plane, weight = 128 * 64 * 32 * 32 * 2, 64 * 128 * 2
    flop = 2 * 128 * 128 * 16 * 16 * 64
    assert Launch("_convolution", flop, plane / 4 + weight + 2 * plane / 2) in every


def test_a_kernel_takes_what_its_tightest_limit_allows():
    gpu, reached = GPUS["H200"], Reached(arithmetic=0.5, memory=1.0, least=2e-6)
    assert Launch("k", 989e12, 0).seconds(gpu, reached) == 2.0
    assert Launch("k", 0, 4.8e12).seconds(gpu, reached) == 1.0
    assert Launch("k", 1, 1).seconds(gpu, reached) == 2e-6


@pytest.mark.soak
@pytest.mark.parametrize(
    "part", ["convolutions", "other_convolutions", "sign_bits", "stem", "stem_step", "head", "batchnorm"]
)
def test_every_part_saves_time_where_it_runs(part):
    case = Case("resnet8", "cifar10", 128)
    with_it, without = Parts(), Parts(**{part: False})
    for gpu in GPUS.values():
        rates = [rate(case, parts, gpu, Reached()) for parts in (with_it, without)]
        idle = part in ("convolutions", "other_convolutions", "sign_bits") and not gpu.copy_engine
        assert rates[0] == rates[1] if idle else rates[0] > rates[1]


def test_a_profile_of_something_else_is_refused(tmp_path):
    with pytest.raises(UserError, match=r"must hold a profile of peeraid, resnet8, .*, got NVIDIA H200"):
        profile_of(PROFILE, Case("resnet8", "cifar10", 128), "H200")
    with pytest.raises(UserError, match="on A100, got NVIDIA H200"):
        profile_of(PROFILE, CASE, "A100")
    (tmp_path / "a.json").write_text("[1]")
    with pytest.raises(UserError, match="no records of a benchmark"):
        profile_of(tmp_path / "a.json", CASE, "H200")
