"""Images per second of the training step: fastpeer beside the released step, in alternation.

python -m benchmarks.throughput --models resnet18 --datasets cifar10 tiny --batch-sizes 128 256
python -m benchmarks.throughput --reference PATH/TO/PeerAiD
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import product
from pathlib import Path
from typing import Literal

import torch
from rich.table import Table

from benchmarks.harness.display import bar_plot, missing, rates_table, show
from benchmarks.harness.program import Timed, start
from benchmarks.harness.record import Record, Report, counted
from benchmarks.speed.roofline import Limits, measured_limits, step_work
from benchmarks.speed.timeline import add_kernels
from benchmarks.speed.timeline import table_of as timeline_of
from benchmarks.steps.cases import Case, cases
from benchmarks.steps.released import ReleasedCode
from benchmarks.steps.variants import (
    Build,
    Ready,
    case_panels,
    compare,
    fast_step,
    literal,
    literal_amp,
    released_code,
)
from fastpeer.config import AttackPrecision, EngineConfig, Precision

FIRST = "released step, fp32"
LONGEST = 60
"""Kernels that are named."""
FEW = 5
"""Kernels of the other steps that are kept."""


@dataclass(frozen=True, kw_only=True)
class Arguments(Timed):
    """Measure images/s of whole training steps (attack, losses, updates) on random images."""

    models: tuple[str, ...] = ("resnet18",)
    """Networks, as student and as peer."""
    datasets: tuple[str, ...] = ("cifar10",)
    """cifar10, cifar100 or tiny: sizes, classes and loss weights."""
    batch_sizes: tuple[int, ...] = (128,)
    """Images in a step."""
    precisions: tuple[Precision, ...] = ("bf16",)
    """fastpeer's, each a variant of its own."""
    attack_precisions: tuple[AttackPrecision, ...] = ("run",)
    """Of its attacks, beside each of the precisions that is another one."""
    amp: Literal["bf16", "fp16"] = "bf16"
    """What the released step autocasts to in its second variant."""
    engine: EngineConfig = field(default_factory=EngineConfig)
    """Parts of fastpeer's step."""
    reference: Path | None = None
    """Checkout of the released code, whose own step is then measured too."""
    profile: bool = False
    """Name the kernels of fastpeer's step that take longest, as timeline.py does, and say how long those of
    the others take: a step that takes much longer than its kernels waits for the host."""


def main(arguments: Arguments) -> None:
    """Measure each case, show it and write."""
    device = arguments.chosen_device()
    report = Report("throughput", arguments, device, arguments.json)
    limits = measured_limits(device, 0.5)
    report.add(*limits.records())
    for case in cases(arguments.models, arguments.datasets, arguments.batch_sizes):
        measure(case, arguments, limits, device, report)
        report.save()


def measure(case: Case, arguments: Arguments, limits: Limits, device: torch.device, report: Report) -> None:
    """Measure one case, show and write it, and profile it, if that is wanted."""
    builds = variants(arguments)
    ours = [name for name in builds if name.startswith("fastpeer")]

    def finish(ready: Mapping[str, Ready]) -> None:
        add_shares(case, limits.best_matmul(), report)
        show(table_of(case, report), *missing(report, case.labels))
        report.save()
        if arguments.plot is not None:
            bar_plot(arguments.plot, f"Training step, {report.facts['device']}", case_panels(report))
        if arguments.profile:
            # Last: whatever the profiler does to the process, the rates are kept.
            profile(ours, ready, case, device, report)

    compare(builds, case, device, arguments.duration(), report, first=ours, after=finish)


def profile(
    names: Sequence[str], ready: Mapping[str, Ready], case: Case, device: torch.device, report: Report
) -> None:
    """Profile all steps; show the kernels of those that are named, and the others' sums."""
    for name, step in ready.items():
        steps = 5 if device.type == "cuda" else 1
        rate = next(entry for entry in report.select("images/s", **case.labels) if entry.name == name)
        report.add(counted(name, 1e3 * case.batch / rate.value, "ms/step", **case.labels))
        add_kernels(name, step, steps, LONGEST if name in names else FEW, case, device, report)
        found = timeline_of(name, case, report)
        show(found if name in names else str(found.title))
        report.save()


def variants(arguments: Arguments) -> dict[str, Build]:
    """Return what is compared, the base of all ratios first."""
    builds = {
        FIRST: literal,
        f"released step, {arguments.amp} AMP": literal_amp(arguments.amp),
    }
    if arguments.reference is not None:
        builds["the authors' code, fp32"] = released_code(ReleasedCode(arguments.reference))
    for precision, attack in product(arguments.precisions, arguments.attack_precisions):
        if attack != precision:
            own = "" if attack == "run" else f", attacks in {attack}"
            builds[f"fastpeer, {precision}{own}"] = fast_step(precision, arguments.engine, attack=attack)
    return builds


def add_shares(case: Case, ceiling: float, report: Report) -> None:
    """Record which share of the measured matrix product's rate the step's necessary operations reach."""
    flop = step_work(case).flop
    for entry in report.select("images/s", **case.labels):
        middle, low, high = (100 * rate * flop / ceiling for rate in (entry.value, entry.p20, entry.p80))
        report.add(Record(entry.name, middle, low, high, entry.n, "% of matrix product", entry.labels))


def table_of(case: Case, report: Report) -> Table:
    """Return a case's results."""
    columns = {
        "× the first": "times the first",
        "% of matrix product": "% of matrix product",
        "GiB": "GiB reserved",
    }
    return rates_table(report, case.title, columns, case.labels)


if __name__ == "__main__":
    start(main, Arguments)
