"""How many signs of the attack's gradient does a number format get right, and with which scale?

python -m benchmarks.quality.attack_signs --data data/cifar10 --run runs/cifar10-resnet18
python -m benchmarks.quality.attack_signs --data data/cifar10 --run runs/natural --labels
"""

import copy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from rich.table import Table
from torch import Tensor, nn

from benchmarks.harness.display import beside, show, spread
from benchmarks.harness.measuring import Flags
from benchmarks.harness.program import start
from benchmarks.harness.record import Report, counted, record
from benchmarks.quality.attack_strength import Trained, trained
from benchmarks.quality.training import Images, unseen_batches
from benchmarks.steps.variants import every_part
from fastpeer.config import AttackPrecision, Config, Precision
from fastpeer.data.stream import Batch
from fastpeer.methods import default_loss
from fastpeer.step.precision import number_format, ready
from fastpeer.step.step import TrainingStep
from fastpeer.victims.interface import Victim

SIGNS = "% of signs as in float64"
LOST = "% zero, unlike in float64"


@dataclass(frozen=True, kw_only=True)
class Arguments(Trained):
    """Compare the signs of an attack's gradients with float64's, at all iterates of the attack in float64."""

    scales: tuple[float, ...] = (1.0, 2.0**8, 2.0**10, 2.0**12, 2.0**14, 2.0**16)
    """Of the gradients in fp16."""
    labels: bool = False
    """Attack a run's student, of any method, away from the labels; else away from the peer's prediction."""


@dataclass(frozen=True)
class Seen:
    """A gradient of the attack in float64: where it was taken, towards what, and the gradient."""

    images: Tensor
    target: Tensor
    gradient: Tensor


class Watched:
    """A victim that keeps what it is asked for, and what it answers."""

    def __init__(self, victim: Victim) -> None:
        self.victim = victim
        self.input_dtype, self.scale = victim.input_dtype, victim.scale
        self.refresh, self.logits = victim.refresh, victim.logits
        self.seen: list[Seen] = []

    def input_gradient(self, images: Tensor, target: Tensor) -> Tensor:
        """Return the victim's gradient at images (B, 3, H, W), and keep all three."""
        gradient = self.victim.input_gradient(images, target)
        self.seen.append(Seen(images, target, gradient))
        return gradient


def main(arguments: Arguments) -> None:
    """Train, attack in float64, compare, show and write."""
    device = arguments.chosen_device()
    report = Report("attack_signs", arguments, device, arguments.json)
    config, images, networks = attacked(arguments, device)
    batches = list(unseen_batches(images, arguments.batches * config.train.batch_size))
    with Flags.current().applied():
        exact = [iterates(networks, config, batch) for batch in batches]
        for name, precision, attack, scale in forms(arguments.scales):
            number_format(precision).allow_tf32()
            step = built(networks, attacking(config, precision, attack, scale))
            add(report, name, [gradients(step, batch) for batch in exact], exact)
    show(table_of(report))
    report.save()


def attacked(arguments: Arguments, device: torch.device) -> tuple[Config, Images, Mapping[str, nn.Module]]:
    """Return settings, images and networks, with a method that attacks towards what is asked for."""
    if not arguments.labels:
        return trained(arguments, device)
    config, images, networks = trained(arguments, device, roles=("student",))
    towards_labels = replace(config, method="pgd-at", loss=default_loss("pgd-at"))
    return towards_labels, images, {"student": networks["student"]}


def forms(scales: Sequence[float]) -> list[tuple[str, Precision, AttackPrecision, float]]:
    """Return name, precision of the run and of its attack, and scale of all that is compared."""
    plain: list[tuple[str, Precision, AttackPrecision, float]] = [
        ("fp32", "fp32", "run", 1.0),
        ("bf16", "fp32", "bf16", 1.0),
    ]
    return [*plain, *((f"fp16, scale {scale:g}", "fp32", "fp16", scale) for scale in scales)]


def attacking(config: Config, precision: Precision, attack: AttackPrecision, scale: float) -> Config:
    """Return settings that attack a folded chain in some format."""
    own = replace(config.attack, precision=attack, gradient_scale=scale)
    engine = replace(every_part("off", "fold", "chain"), kernels="auto")
    return replace(config, precision=precision, attack=own, engine=engine)


def built(networks: Mapping[str, nn.Module], config: Config) -> TrainingStep:
    """Return a step on copies of the networks, in eval mode."""
    device = next(networks["student"].parameters()).device
    own = {name: ready(copy.deepcopy(network).eval(), config, device) for name, network in networks.items()}
    return TrainingStep(config, config.table, own)


def iterates(networks: Mapping[str, nn.Module], config: Config, batch: Batch) -> list[Seen]:
    """Attack a batch in float64, unfolded, and return all gradients."""
    step = built(networks, replace(config, precision="fp64", engine=every_part("off")))
    adversary = step.adversaries["adversarial"]
    adversary.victim = watched = Watched(adversary.victim)
    step.adversarial(batch.images.double(), batch.labels)
    return watched.seen


def gradients(step: TrainingStep, iterates: Sequence[Seen]) -> list[Tensor]:
    """Return the gradients of another step's attack at the same images, in float32 or wider."""
    victim = step.adversaries["adversarial"].victim
    victim.refresh()
    found = []
    for seen in iterates:
        images = seen.images.float()
        images = images if victim.input_dtype is None else images.to(victim.input_dtype)
        target = seen.target.float() if seen.target.is_floating_point() else seen.target
        found.append(victim.input_gradient(images, target).float())
    return found


def add(report: Report, name: str, found: list[list[Tensor]], exact: list[list[Seen]]) -> None:
    """Record, by batch, how the signs compare, and how many values are not finite."""
    ours = [torch.cat(each) for each in found]
    theirs = [torch.cat([seen.gradient for seen in each]) for each in exact]
    pairs = list(zip(ours, theirs, strict=True))
    same = [100 * (one.sign() == other.sign()).double().mean().item() for one, other in pairs]
    lost = [100 * ((one == 0) & (other != 0)).double().mean().item() for one, other in pairs]
    values = torch.cat(ours)
    report.add(
        record(name, same, SIGNS),
        record(name, lost, LOST),
        counted(name, int(values.isnan().sum()), "NaN"),
        counted(name, int(values.isinf().sum()), "infinite"),
        counted(name, int(values.isnan().flatten(1).any(1).sum()), "images with NaN"),
    )


def table_of(report: Report) -> Table:
    """Return all forms."""
    units = (LOST, "NaN", "infinite", "images with NaN")
    table = Table(
        "attack", SIGNS, "20th..80th percentile", *units, title="gradients at all iterates, by batch"
    )
    for entry in report.select(SIGNS):
        cells = (beside(report, entry, unit) for unit in units)
        table.add_row(entry.name, f"{entry.value:.3f}", spread(entry), *cells)
    return table


if __name__ == "__main__":
    start(main, Arguments)
