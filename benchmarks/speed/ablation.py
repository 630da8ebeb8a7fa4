"""What each part of the fast step brings: added in turn, and taken away from the full step; in alternation.

python -m benchmarks.speed.ablation --models resnet18 --datasets cifar10 --batch-sizes 128
python -m benchmarks.speed.ablation --no-ladder --leave-out     what `auto` goes by (auto_table.py)
python -m benchmarks.speed.ablation --no-ladder --leave-out --methods ard --take-away compile
"""

from collections.abc import Mapping
from dataclasses import dataclass, fields

import torch
from rich.table import Table

from benchmarks.harness.display import bar_plot, missing, rates_table, short, show, spread
from benchmarks.harness.measuring import Rounds, paired_ratios
from benchmarks.harness.program import Timed, start
from benchmarks.harness.record import Report, record
from benchmarks.steps.cases import Case, cases
from benchmarks.steps.variants import (
    AUTOCAST,
    Build,
    case_panels,
    compare,
    every_part,
    fast_step,
    literal,
    literal_amp,
)
from fastpeer.config import Config, EngineConfig, Precision
from fastpeer.errors import UserError
from fastpeer.step.options import options_of

FULL = "fastpeer, every part on"
GAIN = "times without it"


@dataclass(frozen=True, kw_only=True)
class Arguments(Timed):
    """Measure the released step, and fastpeer's with one part more each time, or one less."""

    models: tuple[str, ...] = ("resnet18",)
    """Networks, as student and as peer."""
    datasets: tuple[str, ...] = ("cifar10",)
    """cifar10, cifar100 or tiny: sizes, classes and loss weights."""
    batch_sizes: tuple[int, ...] = (128,)
    """Images in a step."""
    methods: tuple[str, ...] = (Config.method,)
    """Whose steps."""
    precision: Precision = "bf16"
    """Of all but the first step."""
    parts: tuple[str, ...] = ("fold", "chain", "kernels", "merge", "compile", "streams", "graph")
    """Parts of fastpeer's step, in the order in which they are added, or taken away."""
    ladder: bool = True
    """Add the parts in turn."""
    leave_out: bool = False
    """Take each part away from the full step; streams, which is no part of it, is added instead."""
    take_away: tuple[str, ...] = ()
    """Only these of the parts, with --leave-out; none: all."""

    def __post_init__(self) -> None:
        names = [field.name for field in fields(EngineConfig)]
        if unknown := set(self.parts) - set(names):
            raise UserError(f"--parts must be among {', '.join(names)}, got {unknown.pop()}")
        if unknown := set(self.take_away) - set(self.parts):
            raise UserError(f"--take-away must be among {', '.join(self.parts)}, got {unknown.pop()}")


def main(arguments: Arguments) -> None:
    """Measure each case, show it and write."""
    device = arguments.chosen_device()
    report = Report("ablation", arguments, device, arguments.json)
    for case in cases(arguments.models, arguments.datasets, arguments.batch_sizes, arguments.methods):
        pairs = pairs_of(case, arguments, device, report) if arguments.leave_out else {}
        builds = ladder(arguments) if arguments.ladder else {}
        builds |= {name: build for pair in pairs.values() for name, build in pair.items()}
        rounds = compare(builds, case, device, arguments.duration(), report, first=[FULL])
        add_gains(pairs, rounds, case, report)
        tables = [table_of(case, report), *([gains_table(case, report)] if pairs else [])]
        show(*tables, *missing(report, case.labels))
        report.save()
        if arguments.plot is not None:
            bar_plot(arguments.plot, f"What each part brings, {report.facts['device']}", case_panels(report))


def ladder(arguments: Arguments) -> dict[str, Build]:
    """Return the steps, each rung with one part more."""
    precision = arguments.precision
    rungs: dict[str, Build] = {
        "released step, fp32": literal,
        f"released step, {precision} AMP": literal_amp(precision),
        f"fastpeer, {precision}, every part off": fast_step(precision, every_part("off")),
    }
    if precision not in AUTOCAST:
        del rungs[f"released step, {precision} AMP"]
    for number, part in enumerate(arguments.parts):
        engine = every_part("off", *arguments.parts[: number + 1])
        rungs[f"+ {part}"] = fast_step(precision, engine, needs=part)
    return rungs


def pairs_of(
    case: Case, arguments: Arguments, device: torch.device, report: Report
) -> dict[str, dict[str, Build]]:
    """Return for each part that can be had two steps, the one with it first; what cannot be had is named."""
    usable = []
    for part in arguments.parts:
        # Each asked for by itself, with what it needs.
        options = options_of(case.config(arguments.precision, every_part("on")), device, case.size)
        if getattr(options, part):
            usable.append(part)
        else:
            report.miss(part, options.reasons[part], **case.labels)
    taken_away = [part for part in usable if part in (arguments.take_away or usable)]
    return {part: pair(part, usable, arguments.precision) for part in taken_away}


def pair(part: str, usable: list[str], precision: Precision) -> dict[str, Build]:
    """Return the full step, and the one without a part. Without folding there is no chain in either."""
    full = [other for other in usable if other != "streams"]
    if part == "streams":
        return {
            "+ streams": fast_step(precision, every_part("off", *full, "streams"), needs="streams"),
            FULL: fast_step(precision, every_part("off", *full)),
        }
    rest = [other for other in full if other != part]
    if part != "fold" or "chain" not in full:
        return {
            FULL: fast_step(precision, every_part("off", *full)),
            f"without {part}": fast_step(precision, every_part("off", *rest)),
        }
    bare = [other for other in rest if other != "chain"]
    return {
        "without chain": fast_step(precision, every_part("off", *bare, "fold")),
        "without fold, chain": fast_step(precision, every_part("off", *bare)),
    }


def add_gains(
    pairs: Mapping[str, Mapping[str, Build]], rounds: Mapping[str, Rounds], case: Case, report: Report
) -> None:
    """Record how many times faster the step is with each part, round by round."""
    for part, both in pairs.items():
        with_it, without = both
        if with_it in rounds and without in rounds:
            ratios = paired_ratios(rounds[without], rounds[with_it])
            report.add(record(part, ratios, GAIN, **case.labels))


def table_of(case: Case, report: Report) -> Table:
    """Return a case's steps."""
    columns = {
        "× the first": "times the first",
        "× the one above": "times the one above",
        "GiB": "GiB reserved",
    }
    return rates_table(report, case.title, columns, case.labels)


def gains_table(case: Case, report: Report) -> Table:
    """Return what each part brings to the full step."""
    table = Table("part", "× without it", "20th..80th percentile", title=case.title)
    for entry in report.select(GAIN, **case.labels):
        table.add_row(entry.name, short(entry.value), spread(entry))
    return table


if __name__ == "__main__":
    start(main, Arguments)
