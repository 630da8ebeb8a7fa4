"""What each Triton kernel takes of a GPU: registers, shared memory, and what did not fit into registers.

python -m benchmarks.speed.compiled_kernels --only convolution attack_head --capabilities 90
The kernels are compiled at the sizes of a training (tests/kernels/ahead_of_time). No GPU is needed.
"""

import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any

import torch
from rich.table import Table

from benchmarks.harness.display import missing, short, show
from benchmarks.harness.program import Common, start
from benchmarks.harness.record import Report, counted
from fastpeer.errors import UserError, one_line

FOLDER = Path(__file__).parents[2] / "tests" / "kernels" / "ahead_of_time"


@dataclass(frozen=True, kw_only=True)
class Arguments(Common):
    """Compile kernels for GPUs that are not there, and say what a program of each takes."""

    only: tuple[str, ...] = ()
    """Names of kernels, as their files in tests/kernels/ahead_of_time; none: all."""
    capabilities: tuple[int, ...] = (80, 90, 100)
    """Compute capabilities: 80 is an A100, 90 an H100 or H200, 100 a B200."""

    def __post_init__(self) -> None:
        if unknown := set(self.only) - set(names()):
            raise UserError(f"--only must be among {', '.join(names())}, got {unknown.pop()}")


def names() -> list[str]:
    """Return the names of all kernels."""
    return sorted(file.stem for file in FOLDER.glob("*.py"))


def main(arguments: Arguments) -> None:
    """Compile, show and write."""
    report = Report("compiled_kernels", arguments, torch.device("cpu"), arguments.json)
    table = Table("kernel", "case", "capability", "registers", "shared memory, bytes", "spilled, bytes")
    for kernel, case, capability, launch in launches(arguments):
        try:
            for usage in usages(capability, launch):
                labels = {"kernel": kernel, "capability": capability}
                report.add(*(counted(case, value, unit, **labels) for unit, value in usage.items()))
                table.add_row(kernel, case, str(capability), *map(short, usage.values()))
        except Exception as error:  # Whatever a compiler runs into, the other cases are worth having.
            report.miss(f"{kernel}, {case}, {capability}", one_line(error)[:200])
        report.save()
    show(table, *missing(report))


def launches(arguments: Arguments) -> Iterator[tuple[str, str, int, Callable[[], object]]]:
    """Yield kernel, case, capability and launch."""
    for name in arguments.only or names():
        module: Any = import_module(f"tests.kernels.ahead_of_time.{name}")
        for case, launch in module.CASES.items():
            for capability in arguments.capabilities:
                if capability in getattr(module, "CAPABILITIES", arguments.capabilities):
                    yield name, case, capability, launch


def usages(capability: int, launch: Callable[[], object]) -> Iterator[dict[str, float]]:
    """Yield what each kernel of a launch takes, by unit: of a thread, but for a program's shared memory."""
    from tests.kernels.compilation import compiled_for, resources_of

    for kernel in compiled_for(capability, launch):
        with tempfile.TemporaryDirectory() as folder:
            registers, spilled = resources_of(kernel, Path(folder))
        yield {
            "registers": registers, "bytes of shared memory": kernel.metadata.shared, "bytes spilled": spilled
        }  # fmt: skip


if __name__ == "__main__":
    start(main, Arguments)
