"""Builds the networks of a method: those it trains, and its frozen teachers."""

import logging
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
from fastpeer.models.sizes import TO_TRAIN, refuse_too_large
from fastpeer.models.weights import load_weights
from fastpeer.step.optimizer import freeze
from fastpeer.step.precision import ready
from fastpeer.training.teachers import Teacher, build_teacher, find_teacher

log = logging.getLogger(__name__)
Size = tuple[int, int]
"""Height and width of the images, in pixels."""


def refuse_unused_weights(config: Config, method: Method, initial: Mapping[str, Path | None]) -> None:
    """Make sure that the method uses every weight file that was named.

    Args:
        config: its teachers' weights are looked at.
        method: the run's method.
        initial: files with initial weights, by network.

    Raises:
        UserError: a file was named for a network that the method does not have.
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
    weights_key: str = "",
) -> dict[str, nn.Module]:
    """Build the networks that a method trains: those of `build_initial_networks`."""
    return build_initial_networks(config, method, classes, device, initial, size, weights_key)[0]


def build_initial_networks(
    config: Config,
    method: Method,
    classes: int,
    device: torch.device,
    initial: Mapping[str, Path | None] = MappingProxyType({}),
    size: Size | None = None,
    weights_key: str = "",
    reset_head: bool = False,
) -> tuple[dict[str, nn.Module], dict[str, list[str]]]:
    """Build the networks that a method trains, on the device and in the precision that the step expects.

    Args:
        config: network names, normalisation, frozen parameters, precision and seed.
        method: names the trained networks.
        classes: number of classes.
        device: where the networks are placed.
        initial: files with initial weights, by network; the others are initialised from the seed.
        size: height and width of the images, for networks built for a fixed size; None: not known.
        weights_key: which set of weights in `initial`'s files; empty: the usual one.
        reset_head: whether the classification layer is left at its random initial values, whatever the files
            hold for it.

    Returns:
        The networks, and the names of the tensors that were not taken from a file, by the file's network.

    Raises:
        UserError: a network cannot be built, its weights do not fit, or nothing can be frozen as asked.
    """
    if device.type == "cpu":
        refuse_too_large([getattr(config.model, name) for name in method.trained], classes, TO_TRAIN)
    fresh: dict[str, nn.Module] = {
        name: _build_network(config, name, classes, size) for name in method.trained
    }
    left_out = {
        name: _load_initial(name, fresh[name], file, weights_key, classes if reset_head else 0)
        for name, file in initial.items()
        if file is not None and name in fresh
    }
    freeze(fresh, config.optim.freeze)
    return {name: ready(network, config, device) for name, network in fresh.items()}, left_out


def _load_initial(name: str, network: nn.Module, file: Path, weights_key: str, reset_head: int) -> list[str]:
    advice = "; --init-reset-head begins with a new classification layer"
    # In float64, so that the file's values are not rounded before they reach the run's own precision.
    left_out = load_weights(network.double(), file, weights_key, reset_head=reset_head, advice=advice)
    if left_out:
        log.info("--init-%s: %s begin at random, not from %s", name, " and ".join(left_out), file)
    return left_out


def find_teachers(config: Config, method: Method) -> list[Teacher]:
    """Find the weights of a method's teachers.

    Raises:
        UserError: a teacher's weights are not named or do not exist.
    """
    student = config.model.student
    return [find_teacher(role, getattr(config, role), student, config.method) for role in method.frozen]


def place_teacher(
    teacher: Teacher, config: Config, classes: int, size: Size, device: torch.device
) -> nn.Module:
    """Build a frozen teacher, on the device and in the precision that the step expects.

    Raises:
        UserError: the teacher does not fit the data set, or the weights do not fit the network.
    """
    return ready(build_teacher(teacher, classes, size), config, device)


def _build_network(config: Config, name: str, classes: int, size: Size | None) -> nn.Module:
    models = config.model
    # A seed for each network, in a forked generator: its weights depend neither on which other networks are
    # built nor on their order.
    with torch.random.fork_rng(devices=[]):
        # Torch's seeds have 63 bits.
        torch.manual_seed(counter_key(config.seed, f"initial {name}") >> 1)
        return build_model(getattr(models, name), classes, size, mean=models.mean, std=models.std)
