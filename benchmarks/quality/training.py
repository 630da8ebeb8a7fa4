"""Short trainings for the comparisons that need networks which have learnt something, and images for them."""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import count, islice
from pathlib import Path

import numpy as np
import torch
from torch import nn

from benchmarks.harness.engine_log import EngineLog
from benchmarks.steps.literal import LiteralStep, peeraid_loss
from fastpeer.config import Config, EngineConfig, ModelConfig, Precision
from fastpeer.config.recipes import load_recipe
from fastpeer.data.dataset import open_dataset
from fastpeer.data.resident import ResidentSource, open_source
from fastpeer.data.split import open_split
from fastpeer.data.stream import Batch, Source, TrainingStream
from fastpeer.data_prep.sources.digits import read_digits
from fastpeer.data_prep.sources.source import ArraySplit
from fastpeer.step.precision import number_format
from fastpeer.step.step import TrainingStep
from fastpeer.training.networks import build_networks


@dataclass(frozen=True)
class Images:
    """A data set.

    Attributes:
        name: of the set.
        classes: how many there are.
        train, test: its splits, on the device.
    """

    name: str
    classes: int
    train: Source
    test: Source


def load_images(folder: Path | None, batch_size: int, device: torch.device) -> Images:
    """Open a folder that `fastpeer prep` wrote; without one, scikit-learn's digits, which take no FFCV."""
    if folder is None:
        digits = read_digits(None)
        splits = [_digits(split, batch_size, device) for split in digits.splits.values()]
        return Images("digits", len(digits.classes), *splits)
    dataset = open_dataset(folder)
    loaders = [open_split(dataset, name, batch_size) for name in ("train", "test")]
    sources = [open_source(loader, dataset.size, device, "device") for loader in loaders]
    return Images(dataset.name, len(dataset.classes), *sources)


def _digits(split: object, batch_size: int, device: torch.device) -> ResidentSource:
    assert isinstance(split, ArraySplit)  # read_digits holds its images in memory.
    samples = [split[index] for index in range(len(split.labels))]
    images = torch.from_numpy(np.stack([pixels for pixels, _ in samples]))
    labels = np.array([label for _, label in samples], dtype=np.int64)
    return ResidentSource(images.to(device), torch.from_numpy(labels).to(device), labels, batch_size)


def training_batches(images: Images, config: Config, steps: int) -> Iterator[Batch]:
    """Yield so many training batches, full ones, shuffled and augmented as the settings say."""
    indices = np.arange(len(images.train.labels))
    stream = TrainingStream(
        images.train, indices, torch.float32, config.seed, config.data.augment, config.data.shuffle,
        drop_last=True,
    )  # fmt: skip
    epochs = (stream.epoch(number) for number in count())
    return islice((batch for epoch in epochs for batch in epoch), steps)


def unseen_batches(images: Images, most: int) -> Iterator[Batch]:
    """Yield the test images, or the first `most` of them, as they are."""
    indices = np.arange(len(images.test.labels))[:most]
    return images.test.batches(indices, None, torch.float32)


Networks = dict[str, nn.Module]


@dataclass(frozen=True, kw_only=True)
class Short:
    """A short training.

    Attributes:
        recipe: whose settings are taken; its learning rate falls at the same fractions of the steps.
        model: student and peer; empty: the recipe's.
        steps: how many.
    """

    recipe: str
    model: str
    steps: int

    def config(self, seed: int, precision: Precision, engine: EngineConfig | None = None) -> Config:
        """Return the settings of one training."""
        recipe = load_recipe(self.recipe)
        model = ModelConfig(student=self.model, peer=self.model) if self.model else recipe.model
        return replace(recipe, seed=seed, precision=precision, model=model, engine=engine or EngineConfig())

    def rates(self, config: Config) -> Iterator[float]:
        """Yield each step's learning rate."""
        falls = [round(self.steps * epoch / config.train.epochs) for epoch in config.optim.milestones]
        for step in range(self.steps):
            yield config.optim.lr * 0.1 ** sum(step >= fall for fall in falls)


def train_fast(
    short: Short, config: Config, images: Images, device: torch.device
) -> tuple[Networks, list[str]]:
    """Train with fastpeer's step; return the networks and the lines that the engine logged."""
    number_format(config.precision).allow_tf32()
    method = config.table
    networks = build_networks(config, method, images.classes, device)
    with EngineLog() as log:
        step = TrainingStep(config, method, networks)
        batches = training_batches(images, config, short.steps)
        for number, (batch, lr) in enumerate(zip(batches, short.rates(config), strict=True)):
            step.set_learning_rate(lr)
            step.train_on(batch, number)
    return networks, [*step.options.describe(), *log.lines]


def train_literally(short: Short, config: Config, images: Images, device: torch.device) -> Networks:
    """Train with the released step in float32, from the same weights and over the same batches.

    Raises:
        UserError: the method is not PeerAiD.
    """
    peeraid_loss(config)
    networks = build_networks(replace(config, precision="fp32"), config.table, images.classes, device)
    for network in networks.values():
        network.to(memory_format=torch.contiguous_format)  # type: ignore[call-overload]
    step = LiteralStep(config, networks)
    torch.manual_seed(config.seed)
    batches = training_batches(images, config, short.steps)
    for batch, lr in zip(batches, short.rates(config), strict=True):
        step.set_learning_rate(lr)
        step(*_contiguous(batch))
    return networks


def _contiguous(batch: Batch) -> tuple[torch.Tensor, torch.Tensor]:
    return batch.images.contiguous(), batch.labels
