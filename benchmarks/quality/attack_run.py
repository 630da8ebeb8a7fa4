"""Attacks a run by `fastpeer eval`, and reports what it finds and how long it takes.

python -m benchmarks.quality.attack_run runs/cifar10-resnet18 --attacks aa --examples 1000
"""

from dataclasses import dataclass
from pathlib import Path

import tyro

from benchmarks.harness.display import show
from benchmarks.harness.process import run_fastpeer
from benchmarks.harness.program import Common, start
from benchmarks.harness.record import Report, counted
from fastpeer.evaluation.results import read_results


@dataclass(frozen=True, kw_only=True)
class Arguments(Common):
    """Attack the student of a run's last epoch."""

    run: tyro.conf.Positional[Path]
    """The run's folder."""
    attacks: str = "aa"
    """Of `fastpeer eval`."""
    examples: int = 1000
    """Test images that are attacked; 0: all."""
    seconds: float = 3600.0
    """For all attacks."""


def main(arguments: Arguments) -> None:
    """Attack, show and write."""
    report = Report("attack_run", arguments, arguments.chosen_device(), arguments.json)
    words = ["eval", str(arguments.run), "--attacks", arguments.attacks, "--checkpoints", "last"]
    words += ["--examples", str(arguments.examples), "--device", arguments.chosen_device().type]
    log = arguments.run.with_name(f"{arguments.run.name}-attacked.log")
    ended = run_fastpeer(words, arguments.seconds, log)
    show(ended.output)
    ended.refuse_unless_done()
    for result in read_results(arguments.run / "results.json"):
        if result.attack in arguments.attacks.split(","):
            labels = {"images": result.images, "seconds": result.seconds}
            report.add(counted(result.target, result.accuracy, f"% under {result.attack}", **labels))
    report.save()


if __name__ == "__main__":
    start(main, Arguments)
