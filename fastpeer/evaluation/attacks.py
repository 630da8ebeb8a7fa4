"""The attacks an evaluation may name: clean, fgsm, pgdN, aa."""

import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from fastpeer.attack.accuracy import MakeExamples, clean, correct_predictions, fgsm, label_pgd
from fastpeer.attack.pgd import evaluating
from fastpeer.attack.prepare import Preparation
from fastpeer.config import EngineConfig
from fastpeer.data.stream import Batch
from fastpeer.engine.plan import make_plan, unheard
from fastpeer.engine.precision import number_format
from fastpeer.errors import UserError
from fastpeer.recipe import nearest

Progress = Callable[[int], None]
"""Called with the number of images done."""


@dataclass(frozen=True)
class AttackSettings:
    """What all attacks of an evaluation have in common."""

    epsilon: float
    step_size: float
    classes: int
    seed: int
    batch_size: int
    preparation: Preparation
    """How the network is attacked, by all but AutoAttack."""


def float32_preparation(device: torch.device) -> Preparation:
    """Return how an evaluation attacks: folded, as a chain, in float32.

    Both are exact up to rounding; compiling would cost more time than it saves.
    """
    engine = EngineConfig(compile="off", graph="off", streams="off", kernels="off")
    plan = make_plan(engine, device, "fp32")
    # A network that cannot be folded is attacked with the same result: nothing to say.
    return plan.preparation(number_format("fp32"), device, unheard)


def parse_attacks(text: str) -> list[str]:
    """Split "clean,fgsm,pgd20,aa" into known names.

    Raises:
        UserError: a name that is not known, or none at all.
    """
    names = [name.strip().lower() for name in text.split(",") if name.strip()]
    for name in names:
        if name not in ("clean", "fgsm", "aa") and not re.fullmatch(r"pgd[1-9]\d*", name):
            known = nearest(name, ("clean", "fgsm", "pgd10", "pgd20", "aa"))
            raise UserError(f"unknown attack {name}: did you mean {known}? (pgdN takes N steps)")
    if not names:
        raise UserError("--attacks names none: try clean,fgsm,pgd20,aa")
    return list(dict.fromkeys(names))


def right_under_attack(
    name: str, network: nn.Module, batches: Iterable[Batch], settings: AttackSettings, progress: Progress
) -> Tensor:
    """Classify images under a named attack on `network`, in the precision of its weights.

    Returns:
        bool (N,) on the CPU: classified right.
    """
    if name == "aa":
        return _autoattack(network, batches, settings, progress)
    attack = _attack(name, network, settings)
    return correct_predictions({"it": network}, _counted(batches, progress), attack)["it"]


def _attack(name: str, network: nn.Module, settings: AttackSettings) -> MakeExamples:
    if name == "clean":
        return clean
    victim, kernels = settings.preparation.victim(network, "network"), settings.preparation.kernels
    victim.refresh()
    if name == "fgsm":
        return fgsm(victim, kernels, settings.epsilon)
    steps = int(name.removeprefix("pgd"))
    return label_pgd(victim, kernels, settings.epsilon, settings.step_size, steps, settings.seed)


def _autoattack(
    network: nn.Module, batches: Iterable[Batch], settings: AttackSettings, progress: Progress
) -> Tensor:
    from fastpeer.evaluation.autoattack import survivors

    right, done = [], 0
    with evaluating(network):
        for batch in batches:
            right.append(
                survivors(
                    network, batch.images, batch.labels, epsilon=settings.epsilon, classes=settings.classes,
                    seed=settings.seed, batch_size=settings.batch_size,
                )
            )  # fmt: skip
            done += len(batch.labels)
            progress(done)
    return torch.cat(right)


def _counted(batches: Iterable[Batch], progress: Progress) -> Iterable[Batch]:
    done = 0
    for batch in batches:
        yield batch
        done += len(batch.labels)
        progress(done)
