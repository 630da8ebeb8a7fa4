"""How fast batches come out of a prepared data set: FFCV alone, and with crop and flip on top.

python benchmarks/loader.py data/cifar10 --epochs 5 --batch-size 128
"""

import statistics
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import tyro
from rich.console import Console
from rich.table import Table

from fastpeer.data.beton import BetonLoader
from fastpeer.data.dataset import open_dataset
from fastpeer.data.stream import TrainingStream


@dataclass(frozen=True)
class Arguments:
    """Measure images per second of the training split."""

    data: tyro.conf.Positional[Path]
    """A prepared data set."""
    epochs: int = 5
    """Passes that are timed, after one that is not."""
    batch_size: int = 128
    """Images in a batch."""


def main(arguments: Arguments) -> None:
    loader = BetonLoader(open_dataset(arguments.data).beton("train"), arguments.batch_size)
    order = np.arange(len(loader.labels))
    stream = TrainingStream(
        loader, order, torch.device("cpu"), torch.float32, seed=0, augment=True, shuffle=True, drop_last=False
    )
    table = Table(
        "what", "images/s, median", "20th percentile", "80th", title=f"{arguments.data}, {len(order)} images"
    )
    for what, epoch in {
        "FFCV": lambda _: loader.batches(order),
        "FFCV, crop, flip, float32": stream.epoch,
    }.items():
        rates = measure(epoch, len(order), arguments.epochs)
        table.add_row(what, *(f"{rate:,.0f}" for rate in (statistics.median(rates), *spread_of(rates))))
    Console().print(table)


def measure(epoch: Callable[[int], Iterable[object]], images: int, epochs: int) -> list[float]:
    """Return images per second of each timed pass."""
    rates = []
    for number in range(epochs + 1):
        began = time.perf_counter()
        for _ in epoch(number):
            pass
        rates.append(images / (time.perf_counter() - began))
    return rates[1:]


def spread_of(rates: list[float]) -> tuple[float, float]:
    """Return the 20th and 80th percentile."""
    low, high = np.percentile(rates, [20, 80])
    return float(low), float(high)


if __name__ == "__main__":
    main(tyro.cli(Arguments))
