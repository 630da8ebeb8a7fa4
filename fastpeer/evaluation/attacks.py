"""The attacks an evaluation may name: clean, fgsm, pgdN, aa."""

import re
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from fastpeer.attack.accuracy import Judge, LabelAttack, fgsm, label_pgd, no_attack
from fastpeer.attack.pgd import evaluating
from fastpeer.attack.prepare import Preparation
from fastpeer.config import EngineConfig
from fastpeer.data.stream import Batch
from fastpeer.engine.capture import captured
from fastpeer.engine.measured import Workload
from fastpeer.engine.plan import Plan, make_plan, unheard
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
    plan: Plan
    """Parts of the engine that attack the network, in all but AutoAttack."""


def evaluation_plan(device: torch.device) -> Plan:
    """Return the parts of an evaluation; all are exact up to rounding, and compiling would take longer.

    What was measured of a training step does not count: there, the attack is compiled and computes in bf16.
    """
    parts = EngineConfig(
        fold="on", chain="on", kernels="on", graph="on", merge="off", compile="off", streams="off"
    )
    return make_plan(parts, device, Workload(network="", size=0, batch=0, precision="fp32"))


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
    judge = Judge({"it": network}, _attack(name, network, settings), record=_recorder(network, settings.plan))
    with _searching_for_algorithms():
        return judge(_counted(batches, progress))["it"]


@contextmanager
def _searching_for_algorithms() -> Iterator[None]:
    """Let cuDNN try its algorithms out; it pays where batches are of one size, as AutoAttack's are not."""
    before = torch.backends.cudnn.benchmark
    torch.backends.cudnn.benchmark = True
    try:
        yield
    finally:
        torch.backends.cudnn.benchmark = before


def _recorder(network: nn.Module, plan: Plan) -> Callable[[Callable[..., Tensor]], Callable[..., Tensor]]:
    device = next(network.parameters()).device
    # What cannot be captured runs with the same result: nothing to say.
    return lambda run: captured(run, device, unheard, "the evaluation") if plan.graph else run


def _attack(name: str, network: nn.Module, settings: AttackSettings) -> LabelAttack:
    if name == "clean":
        return no_attack()
    preparation = _preparation(network, settings.plan)
    victim, kernels = preparation.victim(network, "network"), preparation.kernels
    victim.refresh()
    if name == "fgsm":
        return fgsm(victim, kernels, settings.epsilon)
    steps = int(name.removeprefix("pgd"))
    return label_pgd(victim, kernels, settings.epsilon, settings.step_size, steps, settings.seed)


def _preparation(network: nn.Module, plan: Plan) -> Preparation:
    # A network that cannot be folded is attacked with the same result: nothing to say.
    return plan.preparation(number_format("fp32"), next(network.parameters()).device, unheard)


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
