"""What a training will do, printed before it begins; and what a dry run says instead of training."""

import os
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING

import torch
from torch import nn

from fastpeer.config import format_fraction
from fastpeer.errors import counted
from fastpeer.printing import at_the_end_of_every
from fastpeer.step.attacks import overruled
from fastpeer.training.forecast import describe_parts
from fastpeer.training.memory import peak_memory
from fastpeer.training.rehearsal import rehearse

if TYPE_CHECKING:
    from fastpeer.training.trainer import Trainer


def plan(trainer: "Trainer") -> Iterator[str]:
    """Yield lines on what is trained on what, for how long, with which attack, and what will be measured."""
    config, setup = trainer.config, trainer.setup
    trained = sorted(setup.method.trained, key=lambda name: name != "student")
    networks = [f"{name} {getattr(config.model, name)}" for name in trained]
    height, width = setup.dataset.size
    yield (
        f"{trainer.run.path}: {config.method}, {', '.join(networks)}, {setup.dataset.name} ({setup.classes}"
        f" classes, {height}x{width}), {config.precision} on {setup.device}, seed {config.seed}"
    )
    yield f"networks: {', '.join(_sizes(trainer))}"
    yield _length(trainer)
    yield _attack(trainer)
    yield from trainer.step.describe()
    peer = "; the peer's on the student's examples" if "peer" in setup.networks else ""
    yield f"{at_the_end_of_every(config.selection.every)}: {trainer.selection.describe()}{peer}"
    if config.record.cross_robustness:
        yield trainer.cross_robustness.describe()
    yield from _contention(setup.device)


def dry_run(trainer: "Trainer", announce: Callable[[str], None]) -> Iterator[str]:
    """Take a few steps, and yield lines on the time and memory that the training will take."""
    yield from describe_parts(rehearse(trainer, announce))
    yield f"memory: {peak_memory(trainer.setup.device)}"


def _contention(device: torch.device) -> Iterator[str]:
    """Yield advice where the cores that the threads wait for are taken by other programs."""
    busy = os.getloadavg()[0] > (os.cpu_count() or 1)
    if device.type == "cpu" and busy and torch.get_num_threads() > 1:
        yield "other programs want the same cores: OMP_NUM_THREADS=1 may be several times faster"


def _sizes(trainer: "Trainer") -> Iterator[str]:
    for name, network in sorted(trainer.setup.networks.items(), key=lambda entry: entry[0] != "student"):
        yield f"{name} with {_parameters(network)}"
    for role, (teacher, network) in trainer.setup.teachers.items():
        yield f"{role.replace('_', ' ')} {teacher.network} with {_parameters(network)}, frozen"


def _parameters(network: nn.Module) -> str:
    return f"{sum(parameter.numel() for parameter in network.parameters()):,} parameters"


def _length(trainer: "Trainer") -> str:
    config, done = trainer.config, trainer.position.step
    images = len(trainer.setup.training.indices)
    limit = ", by train.max_steps" if config.train.max_steps else ""
    begun = f", {done} of them done" if done else ""
    return (
        f"{images} training images in batches of {config.train.batch_size}:"
        f" {counted(config.train.epochs, 'epoch')} of {counted(trainer.steps_per_epoch, 'step')},"
        f" {trainer.total_steps} in all{limit}{begun}"
    )


def _attack(trainer: "Trainer") -> str:
    attacks = trainer.setup.method.attacks.values()
    if not attacks:
        return "attack: none, the images stay clean"
    settings = trainer.config.attack
    victims = dict.fromkeys(attack.victim for attack in attacks)
    starts = dict.fromkeys(overruled(attack, settings).start for attack in attacks)
    return (
        f"attack on the {' and the '.join(victims)}: PGD, norm {settings.norm}, epsilon"
        f" {format_fraction(settings.epsilon)}, step size {format_fraction(settings.step_size)},"
        f" {counted(settings.steps, 'step')},"
        f" start {' and '.join(starts)}{'' if settings.precision == 'run' else f', in {settings.precision}'}"
    )
