"""Does the same training, run again or stopped and resumed, end with the same bits on this device?

python -m benchmarks.quality.repeatability --work WORK --steps 12
WORK/data is a prepared data set (prepare_images.py). With `--train.deterministic` the answer is to be yes.
"""

import shutil
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import torch
from rich.table import Table
from safetensors.torch import load_file

from benchmarks.harness.display import short, show
from benchmarks.harness.process import run_fastpeer
from benchmarks.harness.program import Common, start
from benchmarks.harness.record import Report, counted
from fastpeer.config import Precision
from fastpeer.errors import UserError

FIXED, RESUMED = "deterministic", "resumed"
KINDS = (FIXED, "as always")
WAYS = ("run once", "run again", RESUMED)


@dataclass(frozen=True, kw_only=True)
class Arguments(Common):
    """Train a few steps twice, and once with a stop in the middle, and compare all weights."""

    work: Path
    """Folder with data/; the runs are written to runs/repeatability/ in it."""
    steps: int = 12
    """Of each run."""
    recipe: str = "cifar10-resnet18"
    """Whose settings are taken."""
    model: str = ""
    """Student and peer; empty: the recipe's."""
    batch: int = 0
    """Images in a step; 0: the recipe's."""
    precision: Precision = "bf16"
    """Of `fastpeer train`."""
    seconds: float = 150.0
    """For each run."""


def main(arguments: Arguments) -> None:
    """Train, compare, show and write; fail where deterministic runs differ."""
    device = arguments.chosen_device()
    report = Report("repeatability", arguments, device, arguments.json)
    folder = arguments.work / "runs" / "repeatability"
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    plans = [(kind, way) for kind in KINDS for way in WAYS]
    # All at once: they only wait for each other's work on the device.
    with ThreadPoolExecutor(len(plans)) as threads:
        list(threads.map(lambda plan: train(arguments, place(folder, *plan), *plan, device), plans))
    for kind in KINDS:
        for way in WAYS[1:]:
            distance = largest_difference(place(folder, kind, WAYS[0]), place(folder, kind, way))
            report.add(counted(f"{kind}, {way}", distance, "largest difference of a weight", kind=kind))
    report.save()
    show(table_of(report))
    differing = [entry.name for entry in report.records if entry.labels["kind"] == FIXED and entry.value > 0]
    if differing:
        raise UserError(f"not the same bits: {', '.join(differing)}")


def place(folder: Path, kind: str, way: str) -> Path:
    """Return the folder of a run."""
    return folder / f"{kind}-{way}".replace(" ", "-")


def train(arguments: Arguments, run: Path, kind: str, way: str, device: torch.device) -> None:
    """Train a run in one go, or up to the middle and on.

    Raises:
        UserError: a training failed.
    """
    where: list[object] = ["--out", run, "--device", device.type, "--quiet"]
    words = ["train", arguments.recipe, "--data", arguments.work / "data", *where]
    # Not compiled: that takes a minute for each run, and is to change nothing here.
    words += ["--precision", arguments.precision, "--engine.compile", "off", "--selection.examples", 16]
    words += ["--train.deterministic"] if kind == FIXED else []
    words += ["--train.batch-size", arguments.batch] if arguments.batch else []
    if arguments.model:
        words += ["--model.student", arguments.model, "--model.peer", arguments.model]
    half, whole = (["--train.max-steps", count] for count in (arguments.steps // 2, arguments.steps))
    if way == RESUMED:
        command(arguments, run, [*words, *half])
        command(arguments, run, ["train", "--resume", *where, *whole])
    else:
        command(arguments, run, [*words, *whole])


def command(arguments: Arguments, run: Path, words: Sequence[object]) -> None:
    """Run `fastpeer`, and keep what it says beside the run."""
    ended = run_fastpeer([str(word) for word in words], arguments.seconds, run.with_suffix(".log"))
    if ended.state != "done":
        show(ended.output)
    ended.refuse_unless_done()


def largest_difference(run: Path, other: Path) -> float:
    """Return how far the last weights of two runs are apart, at most."""
    distances = [0.0]
    for file in sorted((run / "checkpoints" / "last").resolve().glob("*.safetensors")):
        ours, theirs = load_file(file), load_file((other / "checkpoints" / "last").resolve() / file.name)
        distances += [(ours[key].double() - theirs[key].double()).abs().max().item() for key in ours]
    if len(distances) == 1:
        raise UserError(f"{run}: no weights were saved")
    return max(distances)


def table_of(report: Report) -> Table:
    """Return by how much each run differs from the first of its kind."""
    table = Table("run", "largest difference of a weight", title=f"repeatability, {report.facts['device']}")
    for entry in report.records:
        table.add_row(entry.name, "none" if entry.value == 0 else short(entry.value))
    return table


if __name__ == "__main__":
    start(main, Arguments)
