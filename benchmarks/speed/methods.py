"""Images per second of every method's training step: fastpeer beside the literal step, in alternation.

python -m benchmarks.speed.methods --models resnet18 --datasets cifar10 --batch-sizes 128 --methods all
python -m benchmarks.speed.methods --methods rslad ard adaad
"""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

from rich.table import Table

from benchmarks.harness.display import Panel, bar_plot, missing, rates_table, short, show
from benchmarks.harness.program import Timed, start
from benchmarks.harness.record import Record, Report
from benchmarks.steps.cases import Case, cases, measured_methods
from benchmarks.steps.variants import Build, compare, fast_step, literal, literal_amp
from fastpeer.config import EngineConfig, Precision

FIRST = "literal step, fp32"
AMP = "literal step, bf16 AMP"
GAIN = "times the first"


@dataclass(frozen=True, kw_only=True)
class Arguments(Timed):
    """Measure images/s of every method's whole training step (attack, teachers, losses, updates) on random
    images.
    """

    methods: tuple[str, ...] = ("all",)
    """Methods, and kdiga-ard: KDIGA on adversarial images."""
    models: tuple[str, ...] = ("resnet18",)
    """Networks, as student, peer and teachers."""
    datasets: tuple[str, ...] = ("cifar10",)
    """cifar10, cifar100 or tiny: sizes, classes and loss weights."""
    batch_sizes: tuple[int, ...] = (128,)
    """Images in a step."""
    precisions: tuple[Precision, ...] = ("bf16",)
    """fastpeer's, each a variant of its own."""
    engine: EngineConfig = field(default_factory=EngineConfig)
    """Parts of fastpeer's step."""


def main(arguments: Arguments) -> None:
    """Measure each method in each case, show them and write; in the end, a table over all methods."""
    device = arguments.chosen_device()
    report = Report("methods", arguments, device, arguments.json)
    builds = variants(arguments)
    methods = measured_methods() if "all" in arguments.methods else arguments.methods
    all_cases = cases(arguments.models, arguments.datasets, arguments.batch_sizes, methods)
    for case in all_cases:
        ours = [name for name in builds if name.startswith("fastpeer")]
        compare(builds, case, device, arguments.duration(), report, first=ours)
        show(table_of(case, report), *missing(report, case.labels))
        report.save()
        if arguments.plot is not None:
            bar_plot(
                arguments.plot, f"Every method's step, {report.facts['device']}", panels(all_cases, report)
            )
    show(*(overview(group, list(builds), report) for group in grouped(all_cases).values()))


def variants(arguments: Arguments) -> dict[str, Build]:
    """Return what is compared, the base of all ratios first."""
    builds: dict[str, Build] = {FIRST: literal, AMP: literal_amp("bf16")}
    for precision in arguments.precisions:
        builds[f"fastpeer, {precision}"] = fast_step(precision, arguments.engine)
    return builds


def table_of(case: Case, report: Report) -> Table:
    """Return one method's results."""
    return rates_table(report, case.title, {"× the first": GAIN, "GiB": "GiB reserved"}, case.labels)


def grouped(all_cases: Sequence[Case]) -> dict[str, list[Case]]:
    """Return the cases that differ in the method alone, by what they share."""
    groups: dict[str, list[Case]] = {}
    for case in all_cases:
        groups.setdefault(case.shapes, []).append(case)
    return groups


def overview(group: Sequence[Case], names: Sequence[str], report: Report) -> Table:
    """Return a line for each method: the literal step's rate, and each other one's with its gain."""
    columns = [column for name in names[1:] for column in (name, "×")]
    table = Table("method", FIRST, *columns, title=f"{group[0].shapes}, images/s")
    for case in group:
        rates, gains = (_by_name(report, unit, case) for unit in ("images/s", GAIN))
        cells = [cell for name in names[1:] for cell in (rates.get(name), gains.get(name))]
        table.add_row(case.method, *(_written(entry) for entry in (rates.get(FIRST), *cells)))
    return table


def panels(all_cases: Sequence[Case], report: Report) -> list[Panel]:
    """Return a plot's panels: how many times faster than the literal step, by variant."""
    found: dict[str, list[Record]] = {}
    for shapes, group in grouped(all_cases).items():
        for case in group:
            for name, gain in _by_name(report, GAIN, case).items():
                bar = replace(gain, name=case.method, unit=f"times the {FIRST}")
                found.setdefault(f"{name}: {shapes}", []).append(bar)
    return [Panel(title, bars) for title, bars in found.items() if not title.startswith(FIRST)]


def _by_name(report: Report, unit: str, case: Case) -> dict[str, Record]:
    """Return what was measured of a case by variant; no gains where the literal step is missing."""
    found = {entry.name: entry for entry in report.select(unit, **case.labels)}
    return {} if unit == GAIN and FIRST not in found else found


def _written(entry: Record | None) -> str:
    return "–" if entry is None else short(entry.value)


if __name__ == "__main__":
    start(main, Arguments)
