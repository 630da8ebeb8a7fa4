"""Short trainings for the comparisons that need networks which have learnt something."""

from collections.abc import Iterator
from dataclasses import dataclass, replace

import torch
from torch import nn

from benchmarks.quality.images import Images, training_batches
from benchmarks.steps.literal import LiteralStep, peeraid_loss
from fastpeer.config import Config, EngineConfig, ModelConfig, Precision
from fastpeer.config.recipes import load_recipe
from fastpeer.data.stream import Batch
from fastpeer.step.precision import number_format
from fastpeer.step.step import TrainingStep
from fastpeer.training.networks import build_networks

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
    """Train with fastpeer's step; return the networks and what the engine said."""
    number_format(config.precision).allow_tf32()
    method = config.table
    networks = build_networks(config, method, images.classes, device)
    said: list[str] = []
    step = TrainingStep(config, method, networks, said.append)
    batches = training_batches(images, config, short.steps)
    for number, (batch, lr) in enumerate(zip(batches, short.rates(config), strict=True)):
        step.set_learning_rate(lr)
        step(batch, number)
    return networks, [*step.options.describe(), *said]


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
