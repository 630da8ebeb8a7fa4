"""What is trained in a comparison: a network, a data shape, a batch size, and images to feed it with."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from fastpeer.config import Config, EngineConfig, ModelConfig, Precision, TrainConfig
from fastpeer.data.stream import Batch
from fastpeer.errors import UserError
from fastpeer.recipe import load_recipe

SHAPES = {"cifar10": (32, 10), "cifar100": (32, 100), "tiny": (64, 200)}
"""Side of an image in pixels, and classes, by data set."""


@dataclass(frozen=True)
class Case:
    """One comparison.

    Attributes:
        model: student and peer.
        dataset: whose shape, classes and loss weights are taken; the images are random.
        batch: images in a step.
    """

    model: str
    dataset: str
    batch: int

    def __post_init__(self) -> None:
        if self.dataset not in SHAPES:
            raise UserError(f"--datasets: there is no {self.dataset}; use {', '.join(SHAPES)}")

    @property
    def size(self) -> int:
        """Side of an image, in pixels."""
        return SHAPES[self.dataset][0]

    @property
    def classes(self) -> int:
        """How many there are."""
        return SHAPES[self.dataset][1]

    @property
    def title(self) -> str:
        """Return a heading."""
        return f"{self.model}, {self.dataset} ({self.size}×{self.size}), batch {self.batch}"

    @property
    def labels(self) -> dict[str, str | int | float | bool | None]:
        """Return what a record carries."""
        return {"model": self.model, "dataset": self.dataset, "batch": self.batch}

    def config(self, precision: Precision, engine: EngineConfig | None = None) -> Config:
        """Return the released settings of the data set, with this model."""
        recipe = load_recipe(f"{self.dataset}-resnet18")
        return replace(
            recipe,
            model=ModelConfig(student=self.model, peer=self.model),
            train=TrainConfig(batch_size=self.batch),
            precision=precision,
            engine=engine or EngineConfig(),
        )


def cases(models: Sequence[str], datasets: Sequence[str], batches: Sequence[int]) -> list[Case]:
    """Return all combinations."""
    return [Case(model, dataset, batch) for dataset in datasets for model in models for batch in batches]


def random_batches(
    case: Case, device: torch.device, memory_format: torch.memory_format, count: int = 4
) -> list[Batch]:
    """Draw images of 8-bit pixels in [0, 1] (B, 3, H, W) float32, and labels, from a fixed seed."""
    source = torch.Generator().manual_seed(20240617)
    return [_random_batch(case, device, memory_format, source) for _ in range(count)]


def _random_batch(
    case: Case, device: torch.device, memory_format: torch.memory_format, source: torch.Generator
) -> Batch:
    shape = (case.batch, 3, case.size, case.size)
    pixels: Tensor = torch.randint(0, 256, shape, generator=source, dtype=torch.uint8)
    labels = torch.randint(0, case.classes, (case.batch,), generator=source)
    images = (pixels.float() / 255).to(device).contiguous(memory_format=memory_format)
    return Batch(images, labels.to(device))
