"""What each kernel of a captured step should take, from its bytes and operations, beside what was measured.

python -m benchmarks.speed.cost_model --models resnet18 wideresnet34x10
python -m benchmarks.speed.cost_model --layers
python -m benchmarks.speed.cost_model --measured FILE
FILE holds records of `benchmarks.throughput --profile`. No GPU is needed.
"""

import json
import re
from collections import defaultdict
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Literal

import torch
from rich.table import Table

from benchmarks.harness.display import short, show
from benchmarks.harness.program import Common, start
from benchmarks.harness.record import Report, counted
from benchmarks.speed.launch_costs import GPUS, Gpu, Reached, by_kernel
from benchmarks.speed.launches import BACK, CONVOLUTION, MASK, SUM, WEIGHTS, Parts, step_launches
from benchmarks.speed.layer_costs import layers_of
from benchmarks.steps.cases import Case, cases
from fastpeer.errors import UserError, one_line

KERNELS: dict[str, str] = {
    "_convolution": r"^_convolution$",
    CONVOLUTION: r"fprop|convolve_common",
    CONVOLUTION + BACK: r"dgrad",
    CONVOLUTION + WEIGHTS: r"wgrad",
    SUM: r"CUDAFunctor_add",
    MASK: r"BinaryFunctor.*thre",
    "SGD": r"multi_tensor_apply",
    "weights to bf16": r"bfloat16_copy",
    "Mean": r"MeanOps",
    **{
        name: f"^{name}$"
        for name in (
            "_statistics", "_normalise", "_gradient_sums", "_input_gradient", "_bias_sum_relu", "_forward",
            "_back", "_fold", "_pgd_update", "_attack_gradient", "_attack_head", "loss_kernel",
        )
    },
}  # fmt: skip
"""By predicted kernel: the profiler's names of it."""
OTHERS = "others"
PARTS = tuple(field.name for field in fields(Parts))


@dataclass(frozen=True, kw_only=True)
class Arguments(Common):
    """Predict the time of a PeerAiD step in bf16 kernel by kernel, and hold it against a profile."""

    models: tuple[str, ...] = ("resnet18",)
    """Networks, as student and as peer."""
    datasets: tuple[str, ...] = ("cifar10",)
    """cifar10, cifar100 or tiny."""
    batch_sizes: tuple[int, ...] = (128,)
    """Images in a step."""
    gpu: Literal["A100", "H100", "H200"] = "H200"
    """Whose kernels are listed one by one."""
    reached: Reached = field(default_factory=Reached)
    """What is expected of a kernel."""
    without: tuple[str, ...] = ()
    """Parts (fields of `Parts`) that do not run in the list of kernels, as where they were measured."""
    layers: bool = False
    """List each layer that has kernels of our own, beside the library's and one fused pass behind it."""
    measured: Path | None = None
    """Records of benchmarks.throughput --profile, of the same case on that GPU."""

    def __post_init__(self) -> None:
        if unknown := set(self.without) - set(PARTS):
            raise UserError(f"--without must be among {', '.join(PARTS)}, got {unknown.pop()}")


def main(arguments: Arguments) -> None:
    """Predict, compare, show and write."""
    report = Report("cost_model", arguments, torch.device("cpu"), arguments.json)
    for case in cases(arguments.models, arguments.datasets, arguments.batch_sizes):
        show(rates_of(case, arguments.reached, report))
        show(kernels_of(case, arguments, report))
        if arguments.layers:
            show(layers_of(case, arguments.gpu, GPUS[arguments.gpu], arguments.reached, report))
    report.save()


def rates_of(case: Case, reached: Reached, report: Report) -> Table:
    """Predict images/s on each GPU with all parts and without each, and return the table."""
    table = Table("kernels", *GPUS, title=f"{case.title}, bf16: predicted images/s")
    every = Parts()
    without = {f"without {name}": replace(every, **{name: False}) for name in PARTS}
    for name, parts in {"every part": every, **without}.items():
        rates = {gpu: rate(case, parts, limits, reached) for gpu, limits in GPUS.items()}
        report.add(*(counted(name, rate, "images/s", **case.labels, gpu=gpu) for gpu, rate in rates.items()))
        table.add_row(name, *map(short, rates.values()))
    return table


def rate(case: Case, parts: Parts, gpu: Gpu, reached: Reached) -> float:
    """Return the predicted images/s, kernels following each other without a gap."""
    return case.batch / sum(launch.seconds(gpu, reached) for launch in step_launches(case, parts.on(gpu)))


def kernels_of(case: Case, arguments: Arguments, report: Report) -> Table:
    """Return a row for each kernel: predicted, and measured if there is a profile of the case."""
    parts = Parts(**dict.fromkeys(arguments.without, False))
    launches = step_launches(case, parts.on(GPUS[arguments.gpu]))
    predicted = by_kernel(launches, GPUS[arguments.gpu], arguments.reached)
    measured = {} if arguments.measured is None else profile_of(arguments.measured, case, arguments.gpu)
    columns = ("launches", "MB", "GFLOP", "predicted ms", "measured launches", "measured ms", "× predicted")
    table = Table("kernel", *columns[: None if measured else 4], title=f"{case.title} on {arguments.gpu}")
    rows = {**predicted, **{name: (0, 0.0) for name in measured if name not in predicted}}
    for name, (number, seconds) in rows.items():
        own = [launch for launch in launches if launch.kernel == name]
        amounts = (sum(one.bytes for one in own) / 1e6, sum(one.flop for one in own) / 1e9)
        report.add(counted(name, 1e3 * seconds, "ms predicted", **case.labels, launches=number))
        cells = [short(number), *map(short, amounts), short(1e3 * seconds)]
        table.add_row(name, *cells, *_measured_cells(measured.get(name), seconds))
    total = short(1e3 * sum(seconds for _, seconds in predicted.values()))
    found = ["", short(sum(milliseconds for _, milliseconds in measured.values()))] if measured else []
    table.add_row("all", short(len(launches)), "", "", total, *found)
    return table


def _measured_cells(measured: tuple[float, float] | None, seconds: float) -> list[str]:
    if measured is None:
        return []
    number, milliseconds = measured
    return [short(number), short(milliseconds), short(milliseconds / seconds / 1e3) if seconds else ""]


def profile_of(file: Path, case: Case, gpu: str) -> dict[str, tuple[float, float]]:
    """Return launches and milliseconds of fastpeer's kernels in a profile, by the names used here.

    Raises:
        UserError: it holds no profile of the case, or one of another GPU.
    """
    try:
        content = json.loads(file.read_text("utf-8"))
        device, records = content["facts"]["device"], content["records"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(f"--measured {file}: no records of a benchmark ({one_line(error)})") from None
    found: dict[str, tuple[float, float]] = defaultdict(lambda: (0.0, 0.0))
    for entry in records:
        labels = entry["labels"]
        ours = entry["unit"] == "ms of a step" and labels["step"].startswith("fastpeer")
        if ours and all(labels[name] == value for name, value in case.labels.items()):
            name = _kernel(entry["name"])
            number, milliseconds = found[name]
            found[name] = number + labels["launches"], milliseconds + entry["value"]
    if not found or gpu not in device:
        raise UserError(f"--measured {file}: must hold a profile of {case.title} on {gpu}, got {device}")
    return found


def _kernel(name: str) -> str:
    return next((kernel for kernel, pattern in KERNELS.items() if re.search(pattern, name)), OTHERS)


if __name__ == "__main__":
    start(main, Arguments)
