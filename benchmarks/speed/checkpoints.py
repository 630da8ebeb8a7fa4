"""How long a checkpoint takes, with its checksums and without.

python -m benchmarks.speed.checkpoints --network wideresnet34x10
Student, peer, averaged student and the optimizer's momenta, flushed to the disk, as a training saves them.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import count
from pathlib import Path
from tempfile import TemporaryDirectory
from unittest.mock import patch

import torch
from rich.table import Table

from benchmarks.harness.display import show
from benchmarks.harness.measuring import Run, alternate
from benchmarks.harness.program import Timed, start
from benchmarks.harness.record import Report, record
from fastpeer.checkpoint import save_checkpoint
from fastpeer.config import OptimConfig
from fastpeer.files import flush
from fastpeer.models import build_model
from fastpeer.step.optimizer import sgd

RATE = "checkpoints/s"
WITHOUT, WITH = "without checksums", "with checksums"


@dataclass(frozen=True, kw_only=True)
class Arguments(Timed):
    """Measure the time of a checkpoint."""

    network: str = "wideresnet34x10"
    """Student and peer."""
    folder: Path = Path()
    """Where to write, in a folder that is removed again."""
    rounds: int = 7
    """Rounds of the alternation, at most."""


def main(arguments: Arguments) -> None:
    """Measure and show."""
    device = arguments.chosen_device()
    report = Report("checkpoints", arguments, device, arguments.json)
    with TemporaryDirectory(dir=arguments.folder) as folder:
        run = saving(arguments.network, device, Path(folder))
        run(1)
        around = {WITHOUT: unchecked}
        found = alternate({WITHOUT: run, WITH: run}, device, arguments.duration(), around)
    for name, rounds in found.items():
        report.add(record(name, rounds.rates(1), RATE, network=arguments.network))
    report.save()
    table = Table("checkpoint", "seconds, median", title=f"{arguments.network}, peer and average, {device}")
    for name, rounds in found.items():
        table.add_row(name, f"{sorted(rounds.seconds)[len(rounds.seconds) // 2]:.2f}")
    show(table)


def saving(network: str, device: torch.device, folder: Path) -> Run:
    """Return what saves so many checkpoints."""
    networks = {name: build_model(network, 10).to(device) for name in ("student", "peer", "swa")}
    optimizer = sgd([networks["student"], networks["peer"]], OptimConfig())
    numbers = count()

    def save(times: int) -> None:
        for _ in range(times):
            state = {"optimizer": optimizer.state_dict()}
            save_checkpoint(folder, "last", next(numbers), networks, state, keep_previous=True)

    return save


@contextmanager
def unchecked() -> Iterator[None]:
    """Let checkpoints be written without a manifest, as before there were any."""
    with patch("fastpeer.checkpoint.write_manifest", flush_all):
        yield


def flush_all(folder: Path) -> None:
    """Flush a folder's files, and the folder."""
    for path in (*folder.iterdir(), folder):
        flush(path)


if __name__ == "__main__":
    start(main, Arguments)
