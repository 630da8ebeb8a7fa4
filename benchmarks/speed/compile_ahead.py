"""Compiles steps ahead of those that measure them, and says how long each part of that takes.

python -m benchmarks.speed.compile_ahead --models resnet18 --batch-sizes 128
What is compiled stays in the caches of Inductor and Triton (TORCHINDUCTOR_CACHE_DIR, TRITON_CACHE_DIR). The
images/s are of a few steps, and no measurement: others may compute beside.
"""

import time
from dataclasses import dataclass, field
from typing import Any

import torch
from rich.table import Table

from benchmarks.harness.display import missing, show
from benchmarks.harness.measuring import seconds_of
from benchmarks.harness.program import Common, start
from benchmarks.harness.record import Report, counted
from benchmarks.steps.cases import Case, cases
from benchmarks.steps.variants import GIBIBYTE, fast_step
from fastpeer.config import EngineConfig, Precision
from fastpeer.errors import one_line


@dataclass(frozen=True, kw_only=True)
class Arguments(Common):
    """Build steps, run each a few times."""

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


def main(arguments: Arguments) -> None:
    """Compile, show and write."""
    device = arguments.chosen_device()
    report = Report("compile_ahead", arguments, device, arguments.json)
    table = Table("step", "s to the first result", "of it compiling", "images/s, roughly", "GiB")
    for case in cases(arguments.models, arguments.datasets, arguments.batch_sizes):
        try:
            table.add_row(case.title, *build(case, arguments, device, report))
        except Exception as error:  # Whatever a compiler runs into, the other cases are worth having.
            report.miss(case.title, one_line(error)[:300], **case.labels)
        report.save()
    show(table, *missing(report))


def build(case: Case, arguments: Arguments, device: torch.device, report: Report) -> list[str]:
    """Build a step and run it; return a table's cells."""
    cuda = device.type == "cuda"
    if cuda:
        torch.cuda.reset_peak_memory_stats(device)
    began = time.perf_counter()
    built = fast_step(arguments.precision, arguments.engine)(case, device)
    built.run(1)
    if cuda:
        torch.cuda.synchronize(device)
    first = time.perf_counter() - began
    notes: dict[str, Any] = built.notes()
    report.notes[case.title] = notes
    steps = 20 if cuda else 1
    rate = case.batch * steps / seconds_of(built.run, steps, device)
    memory = torch.cuda.max_memory_reserved(device) / GIBIBYTE if cuda else 0.0
    compiling = sum(notes["seconds of compiling"].values())
    report.add(
        counted(case.title, first, "s to the first result", **case.labels),
        counted(case.title, compiling, "s of compiling", **case.labels),
        counted(case.title, rate, "images/s, roughly", **case.labels),
        counted(case.title, memory, "GiB reserved", **case.labels),
    )
    return [f"{first:.1f}", f"{compiling:.1f}", f"{rate:.0f}", f"{memory:.2f}" if cuda else "–"]


if __name__ == "__main__":
    start(main, Arguments)
