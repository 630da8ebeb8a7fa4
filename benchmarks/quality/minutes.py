"""What does a training of so many minutes reach? By `fastpeer train`, or by the literal step in float32.

python -m benchmarks.quality.minutes --minutes 6 --work WORK               the paper's schedule, shortened
python -m benchmarks.quality.minutes --minutes 6 --work WORK --literal     the same minutes, the released step
WORK/data is a prepared data set (prepare_images.py). How many epochs fit is measured beforehand; the learning
rate falls at the same fractions of them as in the recipe. The student is then attacked by `fastpeer eval`.
"""

import json
import math
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from rich.table import Table
from torch import nn

from benchmarks.harness.display import show
from benchmarks.harness.measuring import seconds_of
from benchmarks.harness.process import run_fastpeer
from benchmarks.harness.program import Common, start
from benchmarks.harness.record import Report, counted
from benchmarks.quality.training import Images, Short, load_images, train_literally
from benchmarks.steps.cases import Case
from benchmarks.steps.variants import fast_step, literal
from fastpeer.config import Config, EngineConfig, ModelConfig, Precision
from fastpeer.config.recipes import load_recipe
from fastpeer.data.dataset import PreparedDataset, open_dataset
from fastpeer.evaluation.results import read_results
from fastpeer.models.weights import save_weights

FOR_EVALUATION = 60.0
"""Seconds of the budget for attacking what was trained, and for a training that takes longer than planned."""
SELECTED_ON = 2000
"""Test images for the accuracies at epochs' ends."""
PART_FOR_TRAINING = 0.9
"""Of the minutes; the rest is for starting, compiling and the evaluations at epochs' ends."""


@dataclass(frozen=True, kw_only=True)
class Arguments(Common):
    """Train for about so many minutes, attack what comes out."""

    work: Path
    """Folder with data/; the run is written to runs/NAME in it."""
    minutes: float = 6.0
    """For the training, about."""
    budget: float = 0.0
    """Seconds for everything: the training gets what measuring and the evaluation leave. 0: no limit."""
    literal: bool = False
    """Train by the literal step in float32 instead, without averaging."""
    name: str = ""
    """Of the run; default: fastpeer or literal."""
    recipe: str = "cifar10-resnet18"
    """Whose settings are taken; epochs and milestones are shortened."""
    model: str = ""
    """Student and peer; empty: the recipe's."""
    batch: int = 0
    """Images in a step; 0: the recipe's."""
    precision: Precision = "bf16"
    """Of `fastpeer train`."""
    engine: EngineConfig = field(default_factory=EngineConfig)
    """Parts of its step."""
    attacks: str = "clean,fgsm,pgd20"
    """Of `fastpeer eval`, on the student of the last epoch."""
    examples: int = 0
    """Test images that are attacked; 0: all."""
    most_steps: int = 0
    """Stop after so many steps; 0: no limit."""

    @property
    def settings(self) -> Config:
        """The recipe, with network, batch size and precision of the command."""
        recipe = load_recipe(self.recipe)
        model = ModelConfig(student=self.model, peer=self.model) if self.model else recipe.model
        train = replace(recipe.train, batch_size=self.batch or recipe.train.batch_size)
        return replace(recipe, model=model, train=train, precision=self.precision)

    @property
    def run(self) -> Path:
        """The run's folder."""
        return self.work / "runs" / (self.name or ("literal" if self.literal else "fastpeer"))


def main(arguments: Arguments) -> None:
    """Train, attack, show and write."""
    device = arguments.chosen_device()
    began = time.perf_counter()
    report = Report("minutes", arguments, device, arguments.json)
    dataset = open_dataset(arguments.work / "data")
    rate = measured_rate(arguments, device)
    arguments = replace(arguments, minutes=minutes_left(arguments, time.perf_counter() - began))
    epochs = epochs_in(arguments.minutes, rate, dataset)
    report.notes["schedule"] = {
        "images/s beforehand": rate,
        "minutes": arguments.minutes,
        "epochs": epochs,
        "falls": falls(arguments, epochs),
    }
    report.save()
    began = time.perf_counter()
    train = train_by_literal_step if arguments.literal else train_by_command
    train(arguments, epochs, device)
    report.add(counted(arguments.run.name, time.perf_counter() - began, "s of training", epochs=epochs))
    add_curves(arguments, report)
    report.save()
    evaluate(arguments, report)
    report.save()
    show(table_of(report, arguments))
    if arguments.plot is not None:
        draw(arguments.plot, report, arguments)


def minutes_left(arguments: Arguments, seconds: float) -> float:
    """Return the minutes for the training, when so many seconds are over."""
    if not arguments.budget:
        return arguments.minutes
    return min(arguments.minutes, max(0.1, (arguments.budget - FOR_EVALUATION - seconds) / 60))


def measured_rate(arguments: Arguments, device: torch.device) -> float:
    """Return the images/s of a few steps on random images; what is compiled here, the training finds done."""
    config = arguments.settings
    case = Case(config.model.student, "cifar10", config.train.batch_size)
    build = literal if arguments.literal else fast_step(config.precision, arguments.engine)
    built = build(case, device)
    steps = 30 if device.type == "cuda" else 1
    built.run(3 if device.type == "cuda" else 1)
    return case.batch * steps / seconds_of(built.run, steps, device)


def epochs_in(minutes: float, rate: float, dataset: PreparedDataset) -> int:
    """Return how many epochs fit, at least one."""
    images = dataset.splits["train"]["count"]
    return max(1, math.floor(PART_FOR_TRAINING * 60 * minutes * rate / images))


def falls(arguments: Arguments, epochs: int) -> list[int]:
    """Return the epochs at which the learning rate falls: the recipe's fractions of all epochs."""
    config = arguments.settings
    scaled = [round(epochs * milestone / config.train.epochs) for milestone in config.optim.milestones]
    return sorted({epoch for epoch in scaled if 0 < epoch < epochs}) or [epochs]


def train_by_command(arguments: Arguments, epochs: int, device: torch.device) -> None:
    """Run `fastpeer train`."""
    flags: dict[str, object] = {
        "--precision": arguments.precision, "--device": device.type, "--log.every": 20,
        "--data": arguments.work / "data", "--out": arguments.run,
        "--train.epochs": epochs, "--train.max-steps": arguments.most_steps,
        "--train.batch-size": arguments.settings.train.batch_size,
        "--selection.every": max(1, epochs // 8), "--selection.examples": arguments.examples or SELECTED_ON,
    }  # fmt: skip
    flags |= {
        f"--engine.{part}": switch for part, switch in asdict(arguments.engine).items() if switch != "auto"
    }
    if arguments.model:
        flags |= {"--model.student": arguments.model, "--model.peer": arguments.model}
    words = [str(word) for flag in flags.items() for word in flag]
    milestones = ["--optim.milestones", *map(str, falls(arguments, epochs))]
    command(
        ["train", arguments.recipe, "--force", *words, *milestones], arguments, 60 * arguments.minutes + 120
    )


def train_by_literal_step(arguments: Arguments, epochs: int, device: torch.device) -> None:
    """Train by the literal step, and write the student into the run's folder."""
    config = replace(arguments.settings, precision="fp32")
    images = load_images(arguments.work / "data", config.train.batch_size, device)
    steps = epochs * (len(images.train.labels) // config.train.batch_size)
    steps = min(steps, arguments.most_steps or steps)
    short = Short(recipe=arguments.recipe, model=arguments.model, steps=max(steps, 1))
    networks = trained_literally(short, config, images, device)
    arguments.run.mkdir(parents=True, exist_ok=True)
    save_weights(networks["student"], arguments.run / "student.safetensors")


def trained_literally(
    short: Short, config: Config, images: Images, device: torch.device
) -> dict[str, nn.Module]:
    """Train under PyTorch's defaults, as the released code does."""
    torch.backends.cudnn.benchmark = True
    torch.backends.cudnn.allow_tf32 = True
    return train_literally(short, config, images, device)


def evaluate(arguments: Arguments, report: Report) -> None:
    """Attack the student of the last epoch by `fastpeer eval`, and record the accuracies."""
    weights = arguments.run / "student.safetensors"
    target = weights if weights.is_file() else arguments.run
    words = ["eval", str(target), "--attacks", arguments.attacks, "--checkpoints", "last"]
    words += ["--examples", str(arguments.examples), "--device", arguments.chosen_device().type]
    if target is weights:
        words += ["--model", arguments.settings.model.student, "--data", str(arguments.work / "data")]
    command(words, arguments, 600.0)
    file = Path(f"{weights}.results.json") if target is weights else arguments.run / "results.json"
    for result in read_results(file):
        labels = {"images": result.images, "seconds": result.seconds}
        report.add(counted(arguments.run.name, result.accuracy, f"% under {result.attack}", **labels))


def command(words: list[str], arguments: Arguments, seconds: float) -> None:
    """Run `fastpeer` with some words, and show what it says.

    Raises:
        UserError: it failed.
    """
    ended = run_fastpeer(words, seconds, arguments.work / f"{arguments.run.name}.log")
    show(ended.output)
    ended.refuse_unless_done()


def add_curves(arguments: Arguments, report: Report) -> None:
    """Record what the run's log holds: accuracies at epochs' ends, and the images/s of all its lines."""
    lines = list(log_lines(arguments.run / "metrics.jsonl"))
    report.notes["epochs"] = [line for line in lines if "selection" in line]
    rates = [line["images_per_second"] for line in lines if "images_per_second" in line]
    if rates:
        # The first line has the start in it.
        later = sorted(rates[1:] or rates)
        report.add(counted(arguments.run.name, later[len(later) // 2], "images/s in training"))
    report.notes["losses"] = [
        {"step": line["step"], **line["losses"]} for line in lines if "losses" in line
    ]  # fmt: skip


def log_lines(file: Path) -> Iterator[dict[str, Any]]:
    """Yield the lines of a run's log; the literal step writes none."""
    if file.is_file():
        for line in file.read_text("utf-8").splitlines():
            yield json.loads(line)


def table_of(report: Report, arguments: Arguments) -> Table:
    """Return what was reached."""
    table = Table(
        "what", "value", title=f"{arguments.run.name}, {arguments.recipe}, {arguments.minutes:g} minutes"
    )
    for entry in report.records:
        table.add_row(entry.unit, f"{entry.value:.2f}")
    return table


def draw(file: Path, report: Report, arguments: Arguments) -> None:
    """Draw the accuracies at epochs' ends and the losses."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, (above, below) = pyplot.subplots(2, 1, figsize=(9, 7), layout="constrained")
    for name, metric, values in accuracy_curves(report):
        above.plot(*values, marker="o", label=f"{name}, {metric}")
    losses = report.notes["losses"]
    for term in sorted({name for line in losses for name in line} - {"step"}):
        below.plot([line["step"] for line in losses], [line[term] for line in losses], label=term)
    above.set(
        xlabel="epoch", ylabel="% of the test images", title=f"{arguments.recipe}, {report.facts['device']}"
    )
    below.set(xlabel="step", ylabel="weighted loss", yscale="log")
    for axis in (above, below):
        axis.grid(alpha=0.3)
        axis.spines[["top", "right"]].set_visible(False)
        if axis.has_data():
            axis.legend(fontsize=8)
    file.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(file, dpi=110)
    pyplot.close(figure)


def accuracy_curves(report: Report) -> Iterator[tuple[str, str, tuple[list[int], list[float]]]]:
    """Yield for each network and metric the epochs and accuracies."""
    lines = report.notes["epochs"]
    keys = {(name, metric) for line in lines for name, found in line["selection"].items() for metric in found}
    for name, metric in sorted(keys):
        points = [(line["epoch"], line["selection"].get(name, {}).get(metric)) for line in lines]
        known = [(epoch, value) for epoch, value in points if value is not None]
        yield name, metric, ([epoch for epoch, _ in known], [value for _, value in known])


if __name__ == "__main__":
    start(main, Arguments)
