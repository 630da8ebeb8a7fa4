"""Taking parts away from the full step: which two steps tell what a part brings."""

import pytest
import torch

from benchmarks.harness.record import Report
from benchmarks.speed import ablation
from benchmarks.speed.ablation import FULL, Arguments, pair, pairs_of
from benchmarks.steps.cases import Case
from benchmarks.steps.variants import compare
from fastpeer.errors import UserError

CPU = torch.device("cpu")
PARTS = ["fold", "chain", "kernels", "merge", "compile", "graph"]


@pytest.mark.parametrize(
    ("part", "names"),
    [
        ("merge", [FULL, "without merge"]),
        ("chain", [FULL, "without chain"]),
        ("fold", ["without chain", "without fold, chain"]),
        ("streams", ["+ streams", FULL]),
    ],
)
def test_each_part_is_judged_by_a_step_with_it_and_one_without(part, names):
    assert list(pair(part, [*PARTS, "streams"], "bf16")) == names


def test_without_a_chain_folding_is_judged_by_the_full_step():
    assert list(pair("fold", ["fold", "merge"], "bf16")) == [FULL, "without fold"]


def test_what_cannot_be_had_is_named():
    report = Report("ablation", Arguments(), CPU, None)
    arguments = Arguments(parts=("fold", "merge", "graph", "streams"))
    assert list(pairs_of(Case("resnet8", "cifar10", 2), arguments, CPU, report)) == ["fold", "merge"]
    assert {one["name"]: one["reason"] for one in report.missing} == {
        "graph": "needs CUDA",
        "streams": "needs CUDA",
    }


def test_some_parts_alone_are_taken_away_of_a_step_with_all():
    report = Report("ablation", Arguments(), CPU, None)
    arguments = Arguments(parts=("fold", "merge", "compile"), take_away=("compile",))
    assert pairs_of(Case("resnet8", "cifar10", 2, "ard"), arguments, CPU, report).keys() == {"compile"}
    with pytest.raises(UserError, match="--take-away must be among fold, merge, got compile"):
        Arguments(parts=("fold", "merge"), take_away=("compile",))


def test_gains_are_measured_and_shown(monkeypatch, tmp_path):
    said = []
    monkeypatch.setattr(ablation, "show", lambda *what: said.extend(what))
    ablation.main(
        Arguments(
            models=("resnet8",), batch_sizes=(2,), precision="fp32", parts=("fold", "merge"), ladder=False,
            leave_out=True, device="cpu", rounds=3, seconds=0.001, json=tmp_path / "ablation.json",
        )
    )  # fmt: skip
    gains = next(one for one in said if getattr(one, "columns", None) and one.columns[0].header == "part")
    assert list(gains.columns[0].cells) == ["fold", "merge"]


class Steps:
    """Steps that are built in some order, of which one cannot be."""

    def __init__(self):
        self.order = []

    def build(self, name, fails=False, uncompiled=""):
        def build(case, device):
            from benchmarks.steps.variants import Built

            self.order.append(name)
            if fails:
                raise RuntimeError("out of luck")
            return Built(lambda steps: None, uncompiled=lambda: uncompiled)

        return build


def test_what_is_wanted_most_is_built_first_and_the_order_of_the_report_stays():
    steps = Steps()
    builds = {name: steps.build(name) for name in ("slow", "other", "ours")}
    report = Report("any", None, CPU, None)
    duration = Arguments(rounds=3, seconds=0.001).duration()
    rounds = compare(builds, Case("resnet8", "cifar10", 2), CPU, duration, report, first=["ours"])
    assert steps.order == ["ours", "slow", "other"]
    assert list(rounds) == ["slow", "other", "ours"]


def test_what_could_not_be_compiled_in_time_is_measured_if_it_is_wanted_most():
    steps = Steps()
    builds = {name: steps.build(name, uncompiled="no time") for name in ("other", "ours")}
    report = Report("any", None, CPU, None)
    duration = Arguments(rounds=3, seconds=0.001).duration()
    rounds = compare(builds, Case("resnet8", "cifar10", 2), CPU, duration, report, first=["ours"])
    assert list(rounds) == ["ours"]
    assert [(one["name"], one["reason"]) for one in report.missing] == [("other", "no time")]


def test_without_the_first_there_are_no_ratios_to_another():
    steps = Steps()
    builds = {"first": steps.build("first", fails=True), "second": steps.build("second")}
    report = Report("any", None, CPU, None)
    compare(builds, Case("resnet8", "cifar10", 2), CPU, Arguments(rounds=3, seconds=0.001).duration(), report)
    assert [one.unit for one in report.records] == ["images/s"]
