"""What libraries and own kernels give for the pieces of a step: convolutions, the stem, BatchNorm.

python -m benchmarks.speed.primitives --batches 128 256
On CUDA each piece is timed inside a CUDA graph, as the captured step runs it.
"""

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Literal

import torch
from rich.table import Table

from benchmarks.harness.display import Panel, bar_plot, beside, missing, short, show, spread
from benchmarks.harness.measuring import Flags, Run, alternate, in_turn, replayed
from benchmarks.harness.program import Timed, start
from benchmarks.harness.record import Label, Record, Report, record
from benchmarks.speed.layer_cases import layers
from benchmarks.speed.primitive_cases import (
    STAGES,
    Group,
    Item,
    batchnorms,
    convolutions,
    stems,
    surroundings,
)
from benchmarks.speed.roofline import Limits, measured_limits
from fastpeer.errors import UserError, one_line

Piece = Literal["convolutions", "surroundings", "stem", "batchnorm", "layers"]
Network = Literal["resnet18", "wideresnet34x10", "mobilenetv2", "small"]


@dataclass(frozen=True, kw_only=True)
class Arguments(Timed):
    """Measure the pieces of a step, and which share of the measured matrix product's rate they reach."""

    pieces: tuple[Piece, ...] = ("convolutions", "surroundings", "stem", "batchnorm", "layers")
    """What to measure; layers are convolutions of 1×1 and at stride 2."""
    networks: tuple[Network, ...] = ("resnet18", "wideresnet34x10")
    """Whose stages' shapes; small is one small shape, mobilenetv2 has layers alone."""
    batches: tuple[int, ...] = (128, 256)
    """Images at once; 256 is what a merged student sees."""
    dtypes: tuple[Literal["bf16", "fp16", "fp32"], ...] = ("bf16", "fp16")
    """Formats."""
    compile: bool = True
    """Measure compiled forms of the first of the formats, too."""
    seconds: float = 0.02
    """Seconds of a round for each variant, about."""
    rounds: int = 10
    """Rounds of the alternation, at most."""
    budget: float = 3600.0
    """Seconds for everything, about: pieces that it does not reach are named."""


def main(arguments: Arguments) -> None:
    """Measure, show and write."""
    device = arguments.chosen_device()
    report = Report("primitives", arguments, device, arguments.json)
    deadline = time.perf_counter() + arguments.budget
    limits = measured_limits(device, 0.5)
    report.add(*limits.records())
    # cuDNN tries its algorithms out, as it does in the step.
    with Flags(benchmark=True, cudnn_tf32=True, matmul_tf32=True).applied():
        for piece in arguments.pieces:
            for group in groups(arguments, device)[piece]():
                left = deadline - time.perf_counter()
                if left > 0:
                    measure(piece, group, replace(arguments, budget=left), device, limits, report)
                else:
                    report.miss(piece, "no time left: raise --budget, or name --pieces")
                report.save()
            show(table_of(piece, report))
    show(*missing(report))
    if arguments.plot is not None:
        bar_plot(arguments.plot, f"Pieces of a step, {report.facts['device']}", panels(report))


def groups(arguments: Arguments, device: torch.device) -> dict[Piece, Callable[[], Iterator[Group]]]:
    """Return what makes the groups of each piece."""
    stages = [stage for network in arguments.networks for stage in STAGES.get(network, ())]
    batches, dtypes = arguments.batches, arguments.dtypes
    size = stages[0].size if stages else 32
    models = ["resnet8" if network == "small" else network for network in arguments.networks]
    return {
        "convolutions": lambda: convolutions(stages, batches, dtypes, device),
        "surroundings": lambda: surroundings(stages, batches[:1], dtypes[:1], arguments.compile, device),
        "stem": lambda: stems(batches[:1], (*dtypes, "fp32"), size, device),
        "batchnorm": lambda: batchnorms(stages, batches[:1], dtypes, arguments.compile, device),
        "layers": lambda: layers(models, batches[:1], dtypes[:1], device),
    }


def measure(
    piece: str, group: Group, arguments: Arguments, device: torch.device, limits: Limits, report: Report
) -> None:
    """Measure one group in alternation; what fails is named."""
    deadline = time.perf_counter() + arguments.budget
    items: dict[str, Item] = {}
    runs: dict[str, tuple[Run, int]] = {}
    for item in group():
        try:
            if time.perf_counter() > deadline:
                raise UserError("no time left: raise --budget, or name --pieces")
            for call in item.calls:
                call()
            runs[item.name] = (
                replayed(item.calls, device) if device.type == "cuda" else (in_turn(item.calls), 1)
            )
            items[item.name] = item
        except Exception as error:  # Compilers and libraries raise whatever they like.
            report.miss(f"{piece}, {item.name}", one_line(error)[:200], **item.labels)
    found = alternate({name: run for name, (run, _) in runs.items()}, device, arguments.duration())
    for name, rounds in found.items():
        each = [seconds / runs[name][1] for seconds in rounds.seconds]
        report.add(*_records(piece, items[name], each, limits))


def _records(piece: str, item: Item, seconds: list[float], limits: Limits) -> list[Record]:
    labels: dict[str, Label] = {"piece": piece, **item.labels}
    records = [record(item.name, [1e6 * each for each in seconds], "µs", **labels)]
    if item.flop:
        # A CPU's limits leave formats out.
        ceiling = limits.matmuls.get("tf32" if item.dtype == "fp32" else item.dtype)
        if ceiling is not None:
            shares = [100 * item.flop / each / ceiling.value for each in seconds]
            records.append(record(item.name, shares, "% of matrix product", **labels))
    return records


def table_of(piece: str, report: Report) -> Table:
    """Return a piece's results."""
    table = Table("where", "batch", "what", "µs", "20th..80th percentile", "% of matrix product", title=piece)
    for entry in report.select("µs", piece=piece):
        place = str(entry.labels["stage"]), str(entry.labels["batch"])
        share = beside(report, entry, "% of matrix product")
        table.add_row(*place, entry.name, short(entry.value), spread(entry), share)
    return table


def panels(report: Report) -> list[Panel]:
    """Return the plot's panels: the convolutions' shares, a stage each."""
    found: dict[str, list[Record]] = {}
    for entry in report.select("% of matrix product", piece="convolutions"):
        found.setdefault(f"{entry.labels['stage']}, batch {entry.labels['batch']}", []).append(entry)
    return [Panel(title, bars) for title, bars in found.items()]


if __name__ == "__main__":
    start(main, Arguments)
