"""Where a step's time goes on the device: its kernels by PyTorch's profiler, and the gaps between them.

python -m benchmarks.speed.timeline --models resnet18 --engine.streams on
"""

from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from rich.table import Table
from torch._C._autograd import DeviceType
from torch.profiler import ProfilerActivity, profile

from benchmarks.harness.display import Panel, bar_plot, missing, short, show
from benchmarks.harness.measuring import alternate
from benchmarks.harness.program import Timed, start
from benchmarks.harness.record import Report, counted, record
from benchmarks.steps.cases import Case, cases
from benchmarks.steps.variants import Build, Ready, build_all, fast_step
from fastpeer.config import EngineConfig, Precision


@dataclass(frozen=True, kw_only=True)
class Arguments(Timed):
    """Profile fastpeer's step: time of a step, sum of its kernels' times, and the longest of them."""

    models: tuple[str, ...] = ("resnet18",)
    """Networks, as student and as peer."""
    datasets: tuple[str, ...] = ("cifar10",)
    """cifar10, cifar100 or tiny."""
    batch_sizes: tuple[int, ...] = (128,)
    """Images in a step."""
    precision: Precision = "bf16"
    """Of the step."""
    engine: EngineConfig = field(default_factory=EngineConfig)
    """Parts of the step."""
    others: bool = True
    """Measure the step without a CUDA graph and with peer and student on two streams, too."""
    steps: int = 5
    """Steps that are profiled."""
    top: int = 25
    """Kernels that are listed."""


def main(arguments: Arguments) -> None:
    """Profile, show and write."""
    device = arguments.chosen_device()
    report = Report("timeline", arguments, device, arguments.json)
    for case in cases(arguments.models, arguments.datasets, arguments.batch_sizes):
        ready = build_all(builds(arguments), case, device, report, arguments.budget)
        found = alternate(
            {name: step.run for name, step in ready.items()}, device, arguments.duration(),
            {name: step.around for name, step in ready.items()},
        )  # fmt: skip
        for name, rounds in found.items():
            report.add(record(name, [1e3 * seconds for seconds in rounds.seconds], "ms/step", **case.labels))
        # Before anything is profiled: whatever the profiler does to the process, the times are kept.
        report.save()
        for name in found:
            add_kernels(name, ready[name], arguments.steps, arguments.top, case, device, report)
            show(table_of(name, case, report))
            report.save()
    show(*missing(report))
    if arguments.plot is not None:
        bars = report.select("ms/step in all") + report.select("ms/step")
        bar_plot(arguments.plot, f"A step's kernels, {report.facts['device']}", [Panel("ms", bars)])


def builds(arguments: Arguments) -> dict[str, Build]:
    """Return the steps that are profiled."""
    precision, engine = arguments.precision, arguments.engine
    found = {"as set": fast_step(precision, engine)}
    if arguments.others:
        found["without a CUDA graph"] = fast_step(precision, replace(engine, graph="off"))
        found["on two streams"] = fast_step(precision, replace(engine, streams="on"), needs="streams")
    return found


def kernel_times(ready: Ready, steps: int, device: torch.device) -> dict[str, list[float]]:
    """Return the times of all kernels in milliseconds, by name; on a CPU those of PyTorch's operators."""
    cuda = device.type == "cuda"
    with (
        ready.around(),
        profile(activities=[ProfilerActivity.CUDA if cuda else ProfilerActivity.CPU]) as found,
    ):
        ready.run(steps)
        if cuda:
            torch.cuda.synchronize(device)
    events: Iterable[Any] = found.events() or []
    times: dict[str, list[float]] = defaultdict(list)
    for event in events:
        if cuda and event.device_type == DeviceType.CUDA:
            times[event.name].append(event.device_time_total / 1e3)
        elif not cuda:
            times[event.name].append(event.self_cpu_time_total / 1e3)
    return times


def add_kernels(
    name: str, ready: Ready, steps: int, top: int, case: Case, device: torch.device, report: Report
) -> None:
    """Profile some steps; record the sum of all kernels' times, their number, and the longest."""
    times = kernel_times(ready, steps, device)
    report.add(
        counted(name, sum(map(sum, times.values())) / steps, "ms/step in all", **case.labels),
        counted(name, sum(map(len, times.values())) / steps, "kernels/step", **case.labels),
    )
    longest = sorted(times.items(), key=lambda item: -sum(item[1]))[:top]
    for kernel, each in longest:
        labels = {**case.labels, "step": name, "launches": len(each) / steps}
        report.add(counted(kernel[:160], sum(each) / steps, "ms of a step", **labels))


def table_of(name: str, case: Case, report: Report) -> Table:
    """Return a step's longest kernels below its sums."""
    whole = next(entry for entry in report.select("ms/step", **case.labels) if entry.name == name)
    total = next(entry for entry in report.select("ms/step in all", **case.labels) if entry.name == name)
    number = next(entry for entry in report.select("kernels/step", **case.labels) if entry.name == name)
    title = (
        f"{case.title}, {name}: {short(whole.value)} ms a step, its {short(number.value)} kernels"
        f" {short(total.value)} ms"
    )
    table = Table("kernel", "launches a step", "ms a step", "%", title=title)
    for entry in report.select("ms of a step", **case.labels, step=name):
        share = 100 * entry.value / total.value
        table.add_row(
            entry.name[:80], short(float(entry.labels["launches"] or 0)), short(entry.value), short(share)
        )
    return table


if __name__ == "__main__":
    start(main, Arguments)
