"""What is trained in a comparison: method, networks, data shape, batch size, and images to feed them with."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import product

import torch
from torch import Tensor, nn

from fastpeer.config import Config, EngineConfig, ModelConfig, Precision, TrainConfig
from fastpeer.config.recipes import recipe_of_method
from fastpeer.data.stream import Batch
from fastpeer.errors import UserError
from fastpeer.methods import Method, method_names
from fastpeer.models import build_model
from fastpeer.step.split_batchnorm import batchnorms, momenta_restored

SHAPES = {"cifar10": (32, 10), "cifar100": (32, 100), "tiny": (64, 200)}
"""Side of an image in pixels, and classes, by data set."""
FORMS: Mapping[str, tuple[str, dict[str, bool]]] = {"kdiga-ard": ("kdiga", {"adversarial": True})}
"""Forms of methods that are measured beside them, with the settings that make them."""


@dataclass(frozen=True)
class Case:
    """One comparison.

    Attributes:
        model: student and peer.
        dataset: whose shape, classes and loss weights are taken; the images are random.
        batch: images in a step.
        method: what is learnt, or the name of a form of it.
    """

    model: str
    dataset: str
    batch: int
    method: str = "peeraid"

    def __post_init__(self) -> None:
        if self.dataset not in SHAPES:
            raise UserError(f"--datasets must be among {', '.join(SHAPES)}, got {self.dataset}")
        if self.method not in measured_methods():
            raise UserError(f"the method must be among {', '.join(measured_methods())}, got {self.method}")

    @property
    def size(self) -> int:
        """Side of an image, in pixels."""
        return SHAPES[self.dataset][0]

    @property
    def sides(self) -> tuple[int, int]:
        """Height and width of an image."""
        return self.size, self.size

    @property
    def classes(self) -> int:
        """How many there are."""
        return SHAPES[self.dataset][1]

    @property
    def shapes(self) -> str:
        """Say what is trained, but for the method."""
        return f"{self.model}, {self.dataset} ({self.size}×{self.size}), batch {self.batch}"

    @property
    def title(self) -> str:
        """Return a heading."""
        return f"{self.method}, {self.shapes}"

    @property
    def labels(self) -> dict[str, str | int | float | bool | None]:
        """Return what a record carries."""
        shapes = {"model": self.model, "dataset": self.dataset, "batch": self.batch}
        return {**shapes, "method": self.method}

    def config(self, precision: Precision, engine: EngineConfig | None = None) -> Config:
        """Return the method's settings for the data set, with this model."""
        method, form = FORMS.get(self.method, (self.method, {}))
        recipe = recipe_of_method(f"{self.dataset}-resnet18", method)
        return replace(
            recipe,
            loss=replace(recipe.loss, **form),
            model=ModelConfig(student=self.model, peer=self.model),
            train=TrainConfig(batch_size=self.batch),
            precision=precision,
            engine=engine or EngineConfig(),
        )


def cases(
    models: Sequence[str],
    datasets: Sequence[str],
    batches: Sequence[int],
    methods: Sequence[str] = (Config.method,),
) -> list[Case]:
    """Return all combinations."""
    combinations = product(datasets, models, batches, methods)
    return [Case(model, dataset, batch, method) for dataset, model, batch, method in combinations]


def measured_methods() -> list[str]:
    """Return all methods, and the forms of them."""
    return sorted([*method_names(), *FORMS])


def measured_table(config: Config) -> Method:
    """Return the table of the last epoch, which is that of most."""
    return config.table.at(config.train.epochs - 1)


def measured_epoch(config: Config) -> int:
    """Return the first epoch that goes by it; the learning rate has not fallen yet."""
    table = measured_table(config)
    return next(epoch for epoch in range(config.train.epochs) if config.table.at(epoch) == table)


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


def trained_networks(
    case: Case, device: torch.device, memory_format: torch.memory_format
) -> dict[str, nn.Module]:
    """Build the trained networks in float32, with weights that are a function of the seed."""
    config = case.config("fp32")
    networks: dict[str, nn.Module] = {}
    for number, name in enumerate(sorted(config.table.trained, reverse=True)):
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(config.seed + number)
            network = build_model(getattr(config.model, name), case.classes, case.sides)
        networks[name] = network.to(device).to(memory_format=memory_format)  # type: ignore[call-overload]
    return networks


TEACHER_SEEDS = {"teacher": 100, "natural_teacher": 101}
"""Of the weights of each teacher."""


def random_teachers(case: Case, device: torch.device) -> dict[str, nn.Module]:
    """Build a method's frozen networks: in float32, NCHW and eval mode; their weights want no gradient."""
    config = case.config("fp32")
    images = random_batches(case, device, torch.contiguous_format, count=1)[0].images
    teachers: dict[str, nn.Module] = {}
    for role in config.table.frozen:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(TEACHER_SEEDS[role])
            network = build_model(config.model.student, case.classes, case.sides).to(device)
        _see(network, images)
        teachers[role] = network.eval().requires_grad_(False)
    return teachers


@torch.no_grad()
def _see(network: nn.Module, images: torch.Tensor) -> None:
    """Make BatchNorm's statistics those of a batch, so that values keep their size through the layers.

    In float64: whether TF32 is allowed just then is not to decide about a teacher.
    """
    norms = batchnorms(network)
    with momenta_restored(norms):
        for norm in norms:
            norm.momentum = 1.0
        network.double().train()(images.double())
    network.float()
