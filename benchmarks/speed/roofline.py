"""How fast a training step could be: operations and bytes of the step, over the device's measured limits.

python -m benchmarks.speed.roofline --models resnet18 wideresnet34x10 --batch-sizes 128
"""

from dataclasses import dataclass, replace

from rich.table import Table

from benchmarks.harness.arguments import Common
from benchmarks.harness.plot import Panel, bar_plot, short
from benchmarks.harness.program import start
from benchmarks.harness.record import Report, counted
from benchmarks.harness.table import show, spread
from benchmarks.speed.limits import Limits, measured_limits
from benchmarks.speed.work import StepWork, step_work
from benchmarks.steps.cases import Case, cases


@dataclass(frozen=True, kw_only=True)
class Arguments(Common):
    """Count what a PeerAiD step needs, and measure what the device can do."""

    models: tuple[str, ...] = ("resnet18", "wideresnet34x10", "mobilenetv2")
    """Networks, as student and as peer."""
    datasets: tuple[str, ...] = ("cifar10", "tiny")
    """cifar10, cifar100 or tiny: sizes and classes."""
    batch_sizes: tuple[int, ...] = (128,)
    """Images in a step."""
    seconds: float = 1.0
    """Seconds for measuring each limit, about."""


def main(arguments: Arguments) -> None:
    """Measure, count, show and write."""
    device = arguments.chosen_device()
    report = Report("roofline", arguments, device, arguments.json)
    limits = measured_limits(device, arguments.seconds)
    report.add(*limits.records())
    show(limits_table(limits, report))
    table = Table(
        "network, shape, batch", "forward, GFLOP", "step, GFLOP", "step, MB", "arithmetic", "bytes", "floor",
        title="a step's floor; the last three in images/s",
    )  # fmt: skip
    for case in cases(arguments.models, arguments.datasets, arguments.batch_sizes):
        table.add_row(*row(case, limits, report))
    show(table)
    report.save()
    if arguments.plot is not None:
        bar_plot(arguments.plot, "Limits of the step", [Panel("floor", report.select("images/s at most"))])


def limits_table(limits: Limits, report: Report) -> Table:
    """Return the measured limits as a table."""
    table = Table("limit", "median", "20th..80th percentile", title=str(report.facts["device"]))
    for one in limits.records():
        tera = replace(one, value=one.value / 1e12, p20=one.p20 / 1e12, p80=one.p80 / 1e12)
        table.add_row(one.name, f"{short(tera.value)} T{one.unit}", spread(tera))
    return table


def row(case: Case, limits: Limits, report: Report) -> list[str]:
    """Count a case, put it into the report, and return its row."""
    work = step_work(case)
    arithmetic, memory = limits_of_rate(work, limits)
    report.add(
        counted(case.title, work.forward_flop, "FLOP forward/image", **case.labels),
        counted(case.title, work.flop, "FLOP/image", **case.labels),
        counted(case.title, work.bytes_per_image, "B/image", **case.labels),
        counted(case.title, min(arithmetic, memory), "images/s at most", **case.labels),
    )
    rates = (arithmetic, memory, min(arithmetic, memory))
    return [
        case.title,
        f"{work.forward_flop / 1e9:.3f}",
        f"{work.flop / 1e9:.1f}",
        f"{work.bytes_per_image / 1e6:.1f}",
        *(short(rate) for rate in rates),
    ]


def limits_of_rate(work: StepWork, limits: Limits) -> tuple[float, float]:
    """Return the images/s that arithmetic and memory each would allow."""
    return limits.best_matmul() / work.flop, limits.copy.value / work.bytes_per_image


if __name__ == "__main__":
    start(main, Arguments)
