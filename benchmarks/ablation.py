"""What each part of the fast step brings: the parts are added in turn, all measured in alternation.

python benchmarks/ablation.py --models resnet18 --datasets cifar10 --batch-sizes 128
"""

from dataclasses import dataclass, fields

from rich.table import Table

from cases import Case, cases
from fast import every_part, fastpeer
from fastpeer.config import EngineConfig, Precision
from fastpeer.errors import UserError
from harness.arguments import Timed
from harness.plot import bar_plot
from harness.program import start
from harness.record import Report
from harness.table import missing, rates_table, show
from variants import AUTOCAST, Build, case_panels, compare, literal, literal_amp


@dataclass(frozen=True, kw_only=True)
class Arguments(Timed):
    """Measure the released step, and fastpeer's with one part more each time."""

    models: tuple[str, ...] = ("resnet18",)
    """Networks, as student and as peer."""
    datasets: tuple[str, ...] = ("cifar10",)
    """cifar10, cifar100 or tiny: sizes, classes and loss weights."""
    batch_sizes: tuple[int, ...] = (128,)
    """Images in a step."""
    precision: Precision = "bf16"
    """Of all but the first step."""
    parts: tuple[str, ...] = ("fold", "chain", "kernels", "merge", "compile", "streams", "graph")
    """Parts of fastpeer's step, in the order in which they are added."""
    leave_out: bool = False
    """Measure the full step without each part, too."""

    def __post_init__(self) -> None:
        names = [field.name for field in fields(EngineConfig)]
        if unknown := set(self.parts) - set(names):
            raise UserError(f"--parts: there is no {unknown.pop()}; use {', '.join(names)}")


def main(arguments: Arguments) -> None:
    """Measure each case, show it and write."""
    device = arguments.chosen_device()
    report = Report("ablation", arguments, device, arguments.json)
    for case in cases(arguments.models, arguments.datasets, arguments.batch_sizes):
        compare(ladder(arguments), case, device, arguments.plan(), report)
        show(table_of(case, report), *missing(report, case.labels))
        report.save()
        if arguments.plot is not None:
            bar_plot(arguments.plot, f"What each part brings, {report.facts['device']}", case_panels(report))


def ladder(arguments: Arguments) -> dict[str, Build]:
    """Return the steps, each rung with one part more."""
    precision = arguments.precision
    rungs: dict[str, Build] = {
        "released step, fp32": literal,
        f"released step, {precision} AMP": literal_amp(precision),
        f"fastpeer, {precision}, every part off": fastpeer(precision, every_part("off")),
    }
    if precision not in AUTOCAST:
        del rungs[f"released step, {precision} AMP"]
    for number, part in enumerate(arguments.parts):
        engine = every_part("off", *arguments.parts[: number + 1])
        rungs[f"+ {part}"] = fastpeer(precision, engine, needs=part)
    if arguments.leave_out:
        for part in arguments.parts:
            left = [other for other in arguments.parts if other != part]
            rungs[f"all but {part}"] = fastpeer(precision, every_part("off", *left))
    return rungs


def table_of(case: Case, report: Report) -> Table:
    """Return a case's rungs."""
    columns = {
        "× the first": "times the first",
        "× the one above": "times the one above",
        "GiB": "GiB reserved",
    }
    return rates_table(report, case.title, columns, case.labels)


if __name__ == "__main__":
    start(main, Arguments)
