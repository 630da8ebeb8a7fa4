"""How long does AutoAttack take by fastpeer's attacks and by pyautoattack, and do the verdicts agree?

python -m benchmarks.speed.autoattack runs/digits --epsilons 4/255 8/255
All ways attack the same images, one after the other; seconds are those of the processor, so that others on it
matter less. pyautoattack attacks the plain network, without gradients of its weights.
"""

import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
import tyro
from rich.table import Table

from benchmarks.harness.display import show
from benchmarks.harness.program import Common, start
from benchmarks.harness.record import Report, counted
from fastpeer.config import AutoAttackWay, parse_fraction
from fastpeer.data.dataset import open_dataset
from fastpeer.data.host import HostSource
from fastpeer.data.split import open_split
from fastpeer.data.stream import EvaluationStream, spread
from fastpeer.device import placed
from fastpeer.evaluation.accuracy import evaluation_options
from fastpeer.evaluation.attacks import AttackSettings
from fastpeer.evaluation.autoattack import classify_under_autoattack
from fastpeer.evaluation.autoattack_parts import standard
from fastpeer.evaluation.autoattack_parts.standard import ATTACKS
from fastpeer.evaluation.verdicts import Verdicts
from fastpeer.models import build_model
from fastpeer.models.weights import load_weights
from fastpeer.run_folder import RunFolder
from fastpeer.step.precision import number_format


@dataclass(frozen=True, kw_only=True)
class Arguments(Common):
    """Attack the student of a run's last epoch in each way."""

    run: tyro.conf.Positional[Path]
    """The run's folder."""
    epsilons: tuple[str, ...] = ("8/255",)
    """Radii in L-infinity."""
    examples: int = 300
    """Test images, evenly spread."""
    batch_size: int = 100
    """Images attacked at once."""
    ways: tuple[AutoAttackWay, ...] = ("official", "plain", "fast")
    """See `fastpeer eval --autoattack`; the first is what the others are compared with."""
    iterations: int = standard.ITERATIONS
    """Of APGD and FAB; others than the standard's 100 are for a try."""
    queries: int = standard.SQUARE_QUERIES
    """Of Square."""


@dataclass
class Attacked:
    """What one way found, and how long each attack took.

    Attributes:
        verdicts: image by image.
        seconds: of the processor, in all and by attack.
    """

    verdicts: Verdicts
    seconds: float
    by_attack: dict[str, float]


def main(arguments: Arguments) -> None:
    """Attack, show and write."""
    device = arguments.chosen_device()
    standard.ITERATIONS, standard.SQUARE_QUERIES = arguments.iterations, arguments.queries
    number_format("fp32").allow_tf32()
    report = Report("autoattack", arguments, device, arguments.json)
    network, stream, classes = load(arguments, device)
    for text in arguments.epsilons:
        settings = AttackSettings(
            parse_fraction(text), 0.0, classes, 0, arguments.batch_size, evaluation_options(device)
        )
        found = {way: attack(network, stream, replace(settings, autoattack=way)) for way in arguments.ways}
        for way, one in found.items():
            add(report, text, way, one, found[arguments.ways[0]])
        show(table(text, found), agreement(found))
        report.save()


def load(arguments: Arguments, device: torch.device) -> tuple[torch.nn.Module, EvaluationStream, int]:
    """Return the run's last student in eval mode, its test images, and the number of classes."""
    run = RunFolder(arguments.run)
    config = run.read_config()
    dataset = open_dataset(Path(run.read_facts()["data"]["folder"]))
    network = build_model(
        config.model.student, len(dataset.classes), dataset.size, mean=config.model.mean, std=config.model.std
    )
    load_weights(network, run.checkpoint("last") / "student.safetensors")
    source = HostSource(open_split(dataset, "test", arguments.batch_size), device)
    chosen = spread(np.arange(len(source.labels)), arguments.examples)
    plain = placed(network, device, torch.float32).eval().requires_grad_(False)
    return plain, EvaluationStream(source, chosen, torch.float32), len(dataset.classes)


def attack(network: torch.nn.Module, stream: EvaluationStream, settings: AttackSettings) -> Attacked:
    """Attack the images in the way that the settings name."""
    by_attack: dict[str, float] = {}
    began = last = time.process_time()

    def progress(done: int, stage: str = "") -> None:
        nonlocal last
        now, name = time.process_time(), stage.split(" ")[0]
        by_attack[name] = by_attack.get(name, 0.0) + now - last
        last = now

    verdicts, _ = classify_under_autoattack(network, stream, settings, progress)
    return Attacked(verdicts, time.process_time() - began, by_attack)


def add(report: Report, epsilon: str, way: str, found: Attacked, first: Attacked) -> None:
    """Add what one way took and found to the report."""
    labels = {"epsilon": epsilon, "way": way}
    report.add(counted("seconds", found.seconds, "s", **labels))
    report.add(counted("times the first", first.seconds / found.seconds, "×", **labels))
    report.add(counted("robust", 100 * float(found.verdicts.correct.mean()), "%", **labels))
    differ = int((found.verdicts.correct != first.verdicts.correct).sum())
    report.add(counted("images of another verdict than the first's", differ, "images", **labels))
    for name, passes, seconds in per_attack(found):
        report.add(counted("passes", passes, "per surviving image", attack=name, **labels))
        report.add(counted("seconds", seconds, "s", attack=name, **labels))


def per_attack(found: Attacked) -> Sequence[tuple[str, float, float]]:
    """Return each attack's passes, forward and backward, for each image that survives it, and its seconds."""
    fallen, rows = found.verdicts.fallen, []
    for place, name in enumerate(ATTACKS):
        surviving = int(((fallen == -1) | (fallen > place + 1)).sum())
        passes = found.verdicts.passes[place] / max(surviving, 1)
        rows.append((name, passes, found.by_attack.get(name, 0.0)))
    return rows


def table(epsilon: str, found: dict[AutoAttackWay, Attacked]) -> Table:
    """Return the time, the robust accuracy and the passes per surviving image of each way."""
    shown = Table(title=f"epsilon {epsilon}: passes per surviving image, seconds")
    for heading in ("way", *ATTACKS, "all", "× the first", "robust, %"):
        shown.add_column(heading)
    first = next(iter(found.values())).seconds
    for way, one in found.items():
        parts = (f"{passes:.0f}, {seconds:.1f} s" for _, passes, seconds in per_attack(one))
        robust = f"{100 * one.verdicts.correct.mean():.2f}"
        shown.add_row(way, *parts, f"{one.seconds:.1f} s", f"{first / one.seconds:.2f}", robust)
    return shown


def agreement(found: dict[AutoAttackWay, Attacked]) -> Table:
    """Return, for each way, how many images have the first way's verdict, or only one of the two robust."""
    shown = Table(title="verdicts, image by image")
    for heading in ("way", "as the first", "robust here alone", "robust there alone"):
        shown.add_column(heading)
    first = next(iter(found.values())).verdicts.correct
    for way, one in found.items():
        robust = one.verdicts.correct
        numbers = ((robust == first).sum(), (robust & ~first).sum(), (first & ~robust).sum())
        shown.add_row(way, *(str(int(number)) for number in numbers))
    return shown


if __name__ == "__main__":
    start(main, Arguments)
