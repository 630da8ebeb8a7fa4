"""How many images a second does an evaluation attack? PGD-20 in float32, plain and by the engine's parts.

python -m benchmarks.speed.evaluation_speed --models resnet18 --batch-sizes 256
Networks have random weights and the statistics of random images: an attack costs the same on any.
"""

from dataclasses import dataclass

import torch
from rich.table import Table
from torch import nn

from benchmarks.harness.display import bar_plot, missing, rates_table, show
from benchmarks.harness.measuring import Flags
from benchmarks.harness.program import Timed, start
from benchmarks.harness.record import Report
from benchmarks.steps.cases import Case, cases, random_batches, random_teachers
from benchmarks.steps.variants import Build, Built, case_panels, compare, every_part
from fastpeer.config import EngineConfig
from fastpeer.device import placed
from fastpeer.evaluation.accuracy import Evaluator, evaluation_options
from fastpeer.evaluation.attacks import label_pgd
from fastpeer.step.measured import Workload
from fastpeer.step.options import choose_options
from fastpeer.step.precision import number_format


@dataclass(frozen=True, kw_only=True)
class Arguments(Timed):
    """Measure images/s under PGD, clean classification of the result included."""

    models: tuple[str, ...] = ("resnet18",)
    """Networks that are attacked."""
    datasets: tuple[str, ...] = ("cifar10",)
    """cifar10, cifar100 or tiny: sizes and classes."""
    batch_sizes: tuple[int, ...] = (256,)
    """Images attacked at once."""
    steps: int = 20
    """Steps of the attack."""


def main(arguments: Arguments) -> None:
    """Measure each case, show it and write."""
    device = arguments.chosen_device()
    report = Report("evaluation_speed", arguments, device, arguments.json)
    for case in cases(arguments.models, arguments.datasets, arguments.batch_sizes, ["rslad"]):
        compare(variants(arguments.steps), case, device, arguments.duration(), report)
        show(table_of(case, report), *missing(report, case.labels))
        report.save()
        if arguments.plot is not None:
            bar_plot(arguments.plot, f"Evaluation, {report.facts['device']}", case_panels(report))


def variants(steps: int) -> dict[str, Build]:
    """Return what is compared: `fastpeer eval` attacks by the last."""
    return {
        "PyTorch, plain": attack(steps, every_part("off"), search=False),
        "PyTorch, plain, cuDNN's search": attack(steps, every_part("off"), search=True),
        "fold": attack(steps, every_part("off", "fold"), search=True),
        "fold, chain": attack(steps, every_part("off", "fold", "chain"), search=True),
        "fastpeer eval": attack(steps, None, search=True),
    }


def attack(steps: int, engine: EngineConfig | None, search: bool) -> Build:
    """Return PGD with some of the engine's parts; None: those of `fastpeer eval`."""

    def build(case: Case, device: torch.device) -> Built:
        Flags(benchmark=search, cudnn_tf32=False, matmul_tf32=False).set()
        workload = Workload(network=case.model, size=case.size, batch=case.batch, precision="fp32")
        options = evaluation_options(device) if engine is None else choose_options(engine, device, workload)
        network: nn.Module = placed(random_teachers(case, device)["teacher"], device, torch.float32)
        victim_factory = options.victim_factory(number_format("fp32"), device)
        victim = victim_factory.victim(network, "network")
        victim.refresh()
        pgd = label_pgd(victim, victim_factory.kernels, 8 / 255, 2 / 255, steps, seed=0)
        evaluator = Evaluator(
            {"it": network},
            pgd,
            record=lambda function: options.recorded(function, device, "the evaluation"),
        )
        batches = random_batches(case, device, torch.channels_last, count=2)

        def run(rounds: int) -> None:
            for number in range(rounds):
                evaluator.correct([batches[number % 2]])

        return Built(run, notes=lambda: {"plan": options.describe()})

    return build


def table_of(case: Case, report: Report) -> Table:
    """Return a case's results."""
    return rates_table(report, case.shapes, {"× the first": "times the first"}, case.labels)


if __name__ == "__main__":
    start(main, Arguments)
