"""Does the fast step train as good a student as the released step? Same seeds, weights and batches.

python -m benchmarks.quality.accuracy_parity                     # ResNet-8 on digits
python -m benchmarks.quality.accuracy_parity --data data/cifar10 --recipe cifar10-resnet18 --steps 600
"""

import statistics
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import torch
from rich.table import Table
from torch import nn

from benchmarks.harness.display import Panel, bar_plot, show
from benchmarks.harness.measuring import Flags, released_flags
from benchmarks.harness.program import Common, start
from benchmarks.harness.record import Report, counted, record
from benchmarks.quality.training import (
    Images,
    Short,
    load_images,
    train_fast,
    train_literally,
    unseen_batches,
)
from fastpeer.config import Config, EngineConfig, Precision
from fastpeer.data.stream import Batch
from fastpeer.evaluation.accuracy import Evaluator
from fastpeer.evaluation.attacks import LabelAttack, label_pgd, no_attack
from fastpeer.kernels.choice import torch_kernels
from fastpeer.victims.autograd import AutogradVictim

LITERAL = "released step, fp32"
UNITS = ("% clean", "% under PGD-20")


@dataclass(frozen=True, kw_only=True)
class Arguments(Common):
    """Train students by both steps for a few hundred steps, several seeds, and attack them with PGD-20."""

    data: Path | None = None
    """A prepared data set; without one, scikit-learn's digits."""
    recipe: str = "demo"
    """Whose settings are taken."""
    model: str = ""
    """Student and peer; empty: the recipe's."""
    steps: int = 300
    """Training steps."""
    seeds: tuple[int, ...] = (0, 1, 2)
    """A training by each step for each seed."""
    precisions: tuple[Precision, ...] = ("fp32", "bf16")
    """fastpeer's."""
    engine: EngineConfig = field(default_factory=EngineConfig)
    """Parts of fastpeer's step."""
    examples: int = 1000
    """Test images, at most."""


def main(arguments: Arguments) -> None:
    """Train and evaluate seed by seed, show and write."""
    device = arguments.chosen_device()
    report = Report("accuracy_parity", arguments, device, arguments.json)
    short = Short(recipe=arguments.recipe, model=arguments.model, steps=arguments.steps)
    images = load_images(arguments.data, short.config(0, "fp32").train.batch_size, device)
    for seed in arguments.seeds:
        for name, student in students(arguments, short, seed, images, device, report):
            config = short.config(seed, "fp32")
            for unit, value in accuracies(student, images, config, arguments.examples).items():
                report.add(counted(name, value, unit, seed=seed, data=images.name))
            report.save()
    summarise(report)
    show(seeds_table(report), summary_table(report))
    report.save()
    if arguments.plot is not None:
        panels = [Panel(f"student's accuracy, {unit}", report.select(f"{unit}, all seeds")) for unit in UNITS]
        bar_plot(arguments.plot, f"Trained for {arguments.steps} steps on {images.name}", panels)


def students(
    arguments: Arguments, short: Short, seed: int, images: Images, device: torch.device, report: Report
) -> Iterator[tuple[str, nn.Module]]:
    """Train by each step in turn, and yield the students."""
    config = short.config(seed, "fp32")
    with released_flags().applied():
        literal = train_literally(short, config, images, device)
    yield LITERAL, literal["student"]
    for precision in arguments.precisions:
        with Flags.current().applied():
            fast = short.config(seed, precision, arguments.engine)
            networks, log = train_fast(short, fast, images, device)
        report.notes[f"fastpeer, {precision}"] = log
        yield f"fastpeer, {precision}", networks["student"]


def accuracies(student: nn.Module, images: Images, config: Config, examples: int) -> dict[str, float]:
    """Return a student's accuracies in % on the test images, computed in float32."""
    student.eval()
    kernels, settings = torch_kernels(), config.attack
    pgd20 = label_pgd(
        AutogradVictim(student, kernels), kernels, settings.epsilon, settings.step_size, 20, seed=0
    )

    def accuracy(attack: LabelAttack) -> float:
        batches: Iterator[Batch] = unseen_batches(images, examples)
        hits = Evaluator({"student": student}, attack).correct(batches)["student"]
        return 100 * hits.float().mean().item()

    with Flags(benchmark=False, cudnn_tf32=False, matmul_tf32=False).applied():
        return dict(zip(UNITS, (accuracy(no_attack()), accuracy(pgd20)), strict=True))


def summarise(report: Report) -> None:
    """Record each step's accuracies over the seeds, and its differences to the released step's, in pairs."""
    for name in names(report):
        for unit in UNITS:
            own, base = values(report, unit, name), values(report, unit, LITERAL)
            off = [a - b for a, b in zip(own, base, strict=True)]
            report.add(record(name, own, f"{unit}, all seeds"), record(name, off, f"{unit}, difference"))


def names(report: Report) -> list[str]:
    """Return the steps, in their order."""
    return list(dict.fromkeys(entry.name for entry in report.select(UNITS[0])))


def values(report: Report, unit: str, name: str) -> list[float]:
    """Return a step's accuracies, seed after seed."""
    return [entry.value for entry in report.select(unit) if entry.name == name]


def seeds_table(report: Report) -> Table:
    """Return each training's accuracies, clean and under attack."""
    seeds = list(dict.fromkeys(entry.labels["seed"] for entry in report.select(UNITS[0])))
    table = Table("step", *(f"seed {seed}" for seed in seeds), title="accuracy in %, clean and under PGD-20")
    for name in names(report):
        pairs = zip(*(values(report, unit, name) for unit in UNITS), strict=True)
        table.add_row(name, *(f"{clean_one:.2f}  {pgd20:.2f}" for clean_one, pgd20 in pairs))
    return table


def summary_table(report: Report) -> Table:
    """Return means and standard deviations over the seeds, and of the differences to the released step."""
    table = Table("step", "accuracy", "mean ± s.d.", "difference, mean ± s.d.", title="over the seeds")
    for name in names(report):
        for unit in UNITS:
            own, base = values(report, unit, name), values(report, unit, LITERAL)
            off = [a - b for a, b in zip(own, base, strict=True)]
            table.add_row(name, unit, mean_and_spread(own), mean_and_spread(off, sign="+"))
    return table


def mean_and_spread(samples: list[float], sign: str = "") -> str:
    """Write a mean and the samples' standard deviation."""
    deviation = statistics.stdev(samples) if len(samples) > 1 else float("nan")
    return f"{statistics.mean(samples):{sign}.2f} ± {deviation:.2f}"


if __name__ == "__main__":
    start(main, Arguments)
