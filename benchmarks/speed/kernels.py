"""Each kernel of the step: Triton beside the PyTorch formula, eager and compiled, on the recipes' shapes.

python -m benchmarks.speed.kernels --batch 128
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from rich.table import Table

from benchmarks.harness.arguments import Timed
from benchmarks.harness.plot import Panel, bar_plot, short
from benchmarks.harness.program import start
from benchmarks.harness.record import Record, Report, record
from benchmarks.harness.replay import Call, in_turn, replayed, sets_beyond_cache
from benchmarks.harness.table import missing, show, spread
from benchmarks.harness.timing import Rounds, Run, alternate
from benchmarks.speed.kernel_cases import KernelCase, calls, kernel_cases
from fastpeer.errors import UserError, one_line
from fastpeer.kernels.choice import torch_kernels, triton_kernels


@dataclass(frozen=True, kw_only=True)
class Arguments(Timed):
    """Measure microseconds for a call: launched from the host in a row, and inside a CUDA graph."""

    batch: int = 128
    """Images in a step."""
    only: tuple[str, ...] = ()
    """Names of kernels; none: all."""
    compile: bool = True
    """Measure torch.compile of the PyTorch formulas, too."""
    seconds: float = 0.05
    """Seconds of a round for each variant, about."""


def main(arguments: Arguments) -> None:
    """Measure every kernel, show them and write."""
    device = arguments.chosen_device()
    report = Report("kernels", arguments, device, arguments.json)
    for case in kernel_cases(arguments.batch, device):
        if not arguments.only or case.name in arguments.only:
            measure(case, arguments, device, report)
            report.save()
    show(table_of(report), *missing(report))
    if device.type != "cuda":
        show("Without CUDA there are no Triton kernels to measure: these are the PyTorch formulas on a CPU.")
    if arguments.plot is not None:
        bar_plot(arguments.plot, f"Kernels, {report.facts['device']}", panels(report))


def measure(case: KernelCase, arguments: Arguments, device: torch.device, report: Report) -> None:
    """Measure one kernel's variants in alternation."""
    sets = [case.inputs() for _ in range(sets_beyond_cache(case.bytes_moved, device))]
    runs: dict[str, Run] = {}
    per_step: dict[str, int] = {}
    for name, function in variants(case, arguments.compile).items():
        try:
            if name == "Triton" and device.type != "cuda":
                raise UserError("needs CUDA")
            bound = calls(function(), sets)
            for call in bound[:3]:
                call()
            add_runs(name, bound, device, runs, per_step)
        except Exception as error:  # Whatever a compiler or a kernel runs into is a result too.
            report.miss(f"{case.name}, {name}", one_line(error)[:300], **case.shape)
    for name, found in alternate(runs, device, arguments.duration()).items():
        report.add(_record(name, case, found, per_step[name], device))


def variants(case: KernelCase, compile_too: bool) -> dict[str, Callable[[], Callable[..., object]]]:
    """Return what makes each implementation."""
    found: dict[str, Callable[[], Callable[..., object]]] = {
        "PyTorch": lambda: case.function(torch_kernels()),
        "Triton": lambda: case.function(triton_kernels()),
    }
    if compile_too:
        found["compiled"] = lambda: torch.compile(case.function(torch_kernels()), dynamic=False)
    return found


def add_runs(
    name: str, bound: list[Call], device: torch.device, runs: dict[str, Run], per_step: dict[str, int]
) -> None:
    """Add a variant's runs, from the host and on CUDA inside a graph."""
    runs[name], per_step[name] = in_turn(bound), 1
    if device.type == "cuda":
        graph = f"{name}, in a graph"
        runs[graph], per_step[graph] = replayed(bound, device)


def _record(name: str, case: KernelCase, found: Rounds, calls_a_step: int, device: torch.device) -> Record:
    micro = [1e6 * one / calls_a_step for one in found.seconds]
    return record(name, micro, "µs", kernel=case.name, moved=case.bytes_moved, **case.shape)


def table_of(report: Report) -> Table:
    """Return all kernels and variants."""
    table = Table("kernel", "inputs", "variant", "µs", "20th..80th percentile", "GB/s")
    for one in report.select("µs"):
        rate = float(one.labels["moved"] or 0) / one.value / 1e3
        where = str(one.labels["kernel"]), shape_of(one)
        table.add_row(*where, one.name, short(one.value), spread(one), short(rate))
    return table


def shape_of(one: Record) -> str:
    """Write what a kernel was given."""
    inputs = {name: value for name, value in one.labels.items() if name not in ("kernel", "moved")}
    return ", ".join(f"{name} {value}" for name, value in inputs.items())


def panels(report: Report) -> list[Panel]:
    """Return the plot's panels: a kernel on a shape each."""
    found: dict[str, list[Record]] = {}
    for one in report.select("µs"):
        found.setdefault(f"{one.labels['kernel']}, {shape_of(one)}", []).append(one)
    return [Panel(title, bars) for title, bars in found.items()]


if __name__ == "__main__":
    start(main, Arguments)
