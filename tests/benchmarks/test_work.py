"""Operations and bytes that are counted on networks without weights in memory."""

import pytest

from benchmarks.speed.roofline import attack_bytes, build_on_meta, count, step_work
from benchmarks.steps.cases import Case

# Multiply-adds as the papers and other tools count them, two operations each.
FORWARD_GFLOP = {
    ("resnet18", "cifar10"): 1.111,
    ("resnet18", "tiny"): 4.444,
    ("wideresnet34x10", "cifar10"): 13.318,
    ("mobilenetv2", "cifar10"): 0.182,
}


@pytest.mark.parametrize(("model", "dataset"), FORWARD_GFLOP)
def test_a_step_costs_thirty_forwards(model, dataset):
    work = step_work(Case(model, dataset, 128))
    assert work.forward_flop / 1e9 == pytest.approx(FORWARD_GFLOP[model, dataset], abs=5e-4)
    assert work.flop == 30 * work.forward_flop


def test_resnet18_is_counted_layer_by_layer():
    counts = count(build_on_meta(Case("resnet18", "cifar10", 1)), 32)
    assert counts.norm == counts.conv_out == 614_400
    assert (counts.conv_in, counts.relu, counts.add) == (666_624, 557_056, 245_760)
    assert attack_bytes(counts) == pytest.approx(9.45e6, rel=1e-3)
