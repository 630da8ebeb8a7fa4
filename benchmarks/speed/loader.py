"""How fast batches come out of a prepared data set: FFCV, other readers, torch's DataLoader, or from memory.

python -m benchmarks.speed.loader data/cifar10 --batch-size 128
All but those that only decode yield what a training step takes: cropped, flipped, float32, on the device.
"""

import os
import time
from collections.abc import Callable, Iterable
from contextlib import closing
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import torch
import tyro
from rich.table import Table
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from benchmarks.harness.display import Panel, bar_plot, show
from benchmarks.harness.measuring import Run, alternate
from benchmarks.harness.program import Timed, start
from benchmarks.harness.record import Report, counted, record
from fastpeer.config import Reader
from fastpeer.data.dataset import PreparedDataset, open_dataset
from fastpeer.data.host import HostSource
from fastpeer.data.loader import Loader
from fastpeer.data.resident import Gather, ResidentSource, open_source
from fastpeer.data.split import open_split
from fastpeer.data.stream import Source, TrainingStream
from fastpeer.kernels.crop_and_flip import PADDING, crop_and_flip

RATE, START = "images/s", "s to the first batch"
Epoch = Callable[[], Iterable[object]]


@dataclass(frozen=True, kw_only=True)
class Arguments(Timed):
    """Measure images per second of the training split."""

    data: tyro.conf.Positional[Path]
    """A prepared data set."""
    batch_size: int = 128
    """Images in a batch."""
    size: int = 0
    """Side of the images, of a data set kept as JPEG: these are decoded on the host alone."""
    workers: int = os.cpu_count() or 1
    """Processes of torch's DataLoader."""


def main(arguments: Arguments) -> None:
    """Measure, show and write."""
    device = arguments.chosen_device()
    report = Report("loader", arguments, device, arguments.json)
    dataset = open_dataset(arguments.data).seen_at(arguments.size, "--size")
    for name, seconds in first_batches(dataset, arguments.batch_size).items():
        report.add(counted(name, seconds, START, data=dataset.name, batch=arguments.batch_size))
    epochs = variants(dataset, device, arguments)
    runs = {name: run_of(epoch) for name, epoch in epochs.items()}
    for run in runs.values():
        run(1)
    images = dataset.splits["train"]["count"]
    for name, rounds in alternate(runs, device, arguments.duration()).items():
        report.add(record(name, rounds.rates(images), RATE, data=dataset.name, batch=arguments.batch_size))
    report.save()
    show(table_of(report, dataset))
    if arguments.plot is not None:
        bar_plot(arguments.plot, f"Loading {dataset.name}", [Panel("", report.select(RATE))])


def first_batches(dataset: PreparedDataset, batch_size: int) -> dict[str, float]:
    """Return how long each reader takes from opening the file to its first batch, in seconds."""
    found = {}
    readers: dict[str, Reader] = {"fastpeer's reader": "auto", "FFCV": "ffcv"}
    for name, reader in readers.items():
        begin = time.perf_counter()
        loader = open_split(dataset, "train", batch_size, reader=reader)
        with closing(loader.batches(np.arange(len(loader.labels)))) as batches:
            next(batches)
        found[name] = time.perf_counter() - begin
    return found


def variants(dataset: PreparedDataset, device: torch.device, arguments: Arguments) -> dict[str, Epoch]:
    """Return what yields the batches of an epoch, by name."""
    loader = open_split(dataset, "train", arguments.batch_size, reader="ffcv")
    found = on_host("FFCV", loader, device)
    loader = open_split(dataset, "train", arguments.batch_size)
    if not loader.one_size:
        return found | on_host("FFCV's C functions", loader, device)
    found |= on_host("NumPy", loader, device)
    resident = kept(loader, dataset, device, crop_and_flip)
    found["kept on the device"] = epoch_of(resident)
    if device.type == "cuda":
        from fastpeer.kernels.fused.crop_and_flip import crop_and_flip as fused

        found["kept on the device, Triton"] = epoch_of(kept(loader, dataset, device, fused))
    torchs = torch_loader(resident, arguments.batch_size, arguments.workers)
    found[f"torch DataLoader, {arguments.workers} workers"] = partial(on_device, torchs, device)
    return found


def on_host(name: str, loader: Loader, device: torch.device) -> dict[str, Epoch]:
    """Return epochs in shuffled order: decoded only, and augmented on the device."""
    order = np.random.default_rng(0).permutation(len(loader.labels))
    return {
        f"{name}, decoded only": partial(loader.batches, order),
        name: epoch_of(HostSource(loader, device)),
    }


def kept(loader: Loader, dataset: PreparedDataset, device: torch.device, gather: Gather) -> ResidentSource:
    """Decode all images to the device."""
    source = open_source(loader, dataset.size, device, "device", gather)
    assert isinstance(source, ResidentSource)
    return source


def epoch_of(source: Source) -> Epoch:
    """Return a training epoch of a source: shuffled, augmented."""
    order = np.arange(len(source.labels))
    stream = TrainingStream(source, order, torch.float32, seed=0, augment=True, shuffle=True, drop_last=False)
    return partial(stream.epoch, 0)


class DecodedImages(Dataset[tuple[Tensor, int]]):
    """Decoded images as a data set of torch's, augmented one by one.

    Args:
        source: the images.
    """

    def __init__(self, source: ResidentSource) -> None:
        self._images = source.images.permute(0, 3, 1, 2).contiguous().cpu()
        self._labels = source.labels.tolist()

    def __len__(self) -> int:
        return len(self._labels)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        """Return the image (3, H, W) in [0, 1], cropped and flipped at random, and its label."""
        image = self._images[index]
        height, width = image.shape[1:]
        padded = torch.nn.functional.pad(image, (PADDING,) * 4)
        top, left, flip = (int(torch.randint(bound, ())) for bound in (2 * PADDING + 1, 2 * PADDING + 1, 2))
        crop = padded[:, top : top + height, left : left + width]
        return (crop.flip(2) if flip else crop).float() / 255, self._labels[index]


def torch_loader(source: ResidentSource, batch_size: int, workers: int) -> DataLoader[tuple[Tensor, int]]:
    """Return torch's loader in the configuration that its documentation recommends."""
    return DataLoader(
        DecodedImages(source), batch_size, shuffle=True, num_workers=workers,
        persistent_workers=workers > 0, pin_memory=source.device.type == "cuda",
    )  # fmt: skip


def on_device(
    batches: DataLoader[tuple[Tensor, int]], device: torch.device
) -> Iterable[tuple[Tensor, Tensor]]:
    """Yield an epoch as the step takes it: on the device, channels-last."""
    for images, labels in batches:
        moved = images.to(device, non_blocking=True, memory_format=torch.channels_last)
        yield moved, labels.to(device, non_blocking=True)


def run_of(epoch: Epoch) -> Run:
    """Return what goes through so many epochs."""

    def run(count: int) -> None:
        for _ in range(count):
            for _ in epoch():
                pass

    return run


def table_of(report: Report, dataset: PreparedDataset) -> Table:
    """Return the table that is shown."""
    title = f"{dataset.name}, {dataset.splits['train']['count']} images, {report.facts['device']}"
    table = Table("what", "images/s, median", "20th percentile", "80th", title=title)
    for entry in report.select(RATE):
        table.add_row(entry.name, *(f"{value:,.0f}" for value in (entry.value, entry.p20, entry.p80)))
    for entry in report.select(START):
        table.add_row(f"{entry.name}: {entry.value:.2f} {START}")
    return table


if __name__ == "__main__":
    start(main, Arguments)
