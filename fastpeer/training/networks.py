"""Builds the networks that a method's table speaks of: those it trains, and its teachers."""

from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType

import torch
from torch import nn

from fastpeer.config import Config, teacher_flag, teacher_words
from fastpeer.data.counter import counter_key
from fastpeer.errors import UserError
from fastpeer.methods import Method
from fastpeer.models import build_model
from fastpeer.models.weights import load_weights
from fastpeer.step.precision import ready
from fastpeer.training.teachers import Teacher, build_teacher, find_teacher

Size = tuple[int, int]


def refuse_unused(config: Config, method: Method, initial: Mapping[str, Path | None]) -> None:
    """Make sure that every file with weights that was named is one the method has a use for.

    Raises:
        UserError: it has none for one.
    """
    flags = {f"--init-{name}": name for name, file in initial.items() if file and name not in method.trained}
    for role in ("teacher", "natural_teacher"):
        if getattr(config, role).weights and role not in method.frozen:
            flags[teacher_flag(role)] = teacher_words(role)
    for flag, name in flags.items():
        raise UserError(f"{flag}: the method {config.method} has no {name}")


def build_networks(
    config: Config,
    method: Method,
    classes: int,
    device: torch.device,
    initial: Mapping[str, Path | None] = MappingProxyType({}),
    size: Size | None = None,
) -> dict[str, nn.Module]:
    """Build the networks that a method trains, from the seed or from files, ready for the step.

    `size` is the images' height and width, for networks that are made for one.

    Raises:
        UserError: weights do not fit.
    """
    fresh = {name: _network(config, name, initial.get(name), classes, size) for name in method.trained}
    return {name: ready(network, config, device) for name, network in fresh.items()}


def find_teachers(config: Config, method: Method) -> list[Teacher]:
    """Find the weights of a method's teachers.

    Raises:
        UserError: one is not named, or not there.
    """
    student = config.model.student
    return [find_teacher(role, getattr(config, role), student, config.method) for role in method.frozen]


def place_teacher(
    teacher: Teacher, config: Config, classes: int, size: Size, device: torch.device
) -> nn.Module:
    """Build a teacher, ready for the step.

    Raises:
        UserError: it does not fit the data set, or its weights do not fit it.
    """
    return ready(build_teacher(teacher, classes, size), config, device)


def _network(config: Config, name: str, weights: Path | None, classes: int, size: Size | None) -> nn.Module:
    models = config.model
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(counter_key(config.seed, f"initial {name}") >> 1)
        network = build_model(getattr(models, name), classes, size, mean=models.mean, std=models.std)
    if weights is not None:
        # In double, so that weights of any precision arrive as they are.
        network.double()
        load_weights(network, weights)
    return network
