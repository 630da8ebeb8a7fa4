"""Does the fast attack reach as high a loss as the plain one in float32? Same networks, images and start.

python -m benchmarks.quality.attack_strength                     # ResNet-8 on digits
python -m benchmarks.quality.attack_strength --data data/cifar10 --recipe cifar10-resnet18 --steps 400
python -m benchmarks.quality.attack_strength --data data/cifar10 --run runs/cifar10-resnet18
"""

import copy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from rich.table import Table
from torch import Tensor, nn
from torch.nn import functional as F

from benchmarks.harness.display import Panel, bar_plot, beside, missing, show, spread
from benchmarks.harness.engine_log import EngineLog
from benchmarks.harness.measuring import Flags
from benchmarks.harness.program import Common, start
from benchmarks.harness.record import Report, record
from benchmarks.quality.training import Images, Short, load_images, train_fast, unseen_batches
from benchmarks.steps.variants import every_part, obstacle
from fastpeer.config import Config, EngineConfig, Precision
from fastpeer.data.stream import Batch
from fastpeer.errors import UserError, one_line
from fastpeer.run_folder import RunFolder
from fastpeer.step.precision import number_format, ready
from fastpeer.step.step import TrainingStep
from fastpeer.training.networks import build_networks

SAME_PIXEL = 1e-5
"""Pixels nearer than that count as identical; a step of the attack is 2/255."""


@dataclass(frozen=True, kw_only=True)
class Trained(Common):
    """Which pair of networks is attacked."""

    data: Path | None = None
    """A prepared data set; without one, scikit-learn's digits."""
    recipe: str = "demo"
    """Whose settings train the networks and attack them."""
    run: Path | None = None
    """A run of PeerAiD, whose networks of the last epoch are attacked by its settings; nothing is trained."""
    model: str = ""
    """Student and peer; empty: the recipe's."""
    steps: int = 200
    """Training steps beforehand."""
    batches: int = 8
    """Test batches that are attacked."""
    seed: int = 0
    """Of the networks and the attack's start."""


@dataclass(frozen=True, kw_only=True)
class Arguments(Trained):
    """Compare attacks on one pair of networks, trained for a few steps beforehand."""

    precisions: tuple[Precision, ...] = ("fp64", "fp32", "bf16", "fp16")
    """Of the attacks; on CUDA tf32 makes sense, too."""
    compile: bool = False
    """Attack through torch.compile, too."""


@dataclass(frozen=True)
class Outcome:
    """What an attack did to one batch, judged in float32 by the plain network.

    Attributes:
        divergence: mean KL from the peer's prediction, the loss that is climbed.
        cross_entropy: mean, with the labels.
        accuracy: of the student, in %.
        images: adversarial, (B, 3, H, W).
    """

    divergence: float
    cross_entropy: float
    accuracy: float
    images: Tensor


def main(arguments: Arguments) -> None:
    """Train, attack, show and write."""
    device = arguments.chosen_device()
    report = Report("attack_strength", arguments, device, arguments.json)
    config, images, networks = trained(arguments, device)
    batches = list(unseen_batches(images, arguments.batches * config.train.batch_size))
    attacks = Attacks(networks, config, batches)
    reference = attacks.run("fp32", every_part("off"))
    add(report, "fp32, plain", reference, reference, images)
    others = attacks.run("fp32", every_part("off"), start=1)
    add(report, "fp32, plain, from another start", others, reference, images)
    for precision in arguments.precisions:
        for name, engine in engines(arguments.compile).items():
            compare(report, f"{precision}, {name}", attacks, precision, engine, reference, images)
    show(table_of(report), *missing(report))
    report.save()
    if arguments.plot is not None:
        bars = report.select("divergence")
        bar_plot(arguments.plot, "Loss that the attack reaches", [Panel(images.name, bars)])


def trained(
    arguments: Trained, device: torch.device, roles: Sequence[str] = ("student", "peer")
) -> tuple[Config, Images, Mapping[str, nn.Module]]:
    """Return settings, images and networks: those of a run, or trained for a few steps.

    Raises:
        UserError: the run lacks one of the networks, called by their `roles`.
    """
    if arguments.run is None:
        short = Short(recipe=arguments.recipe, model=arguments.model, steps=arguments.steps)
        config = short.config(arguments.seed, "fp32")
        images = load_images(arguments.data, config.train.batch_size, device)
        # Compiling would take longer than the few steps.
        uncompiled = replace(config, engine=EngineConfig(compile="off"))
        return config, images, train_fast(short, uncompiled, images, device)[0]
    run = RunFolder(arguments.run)
    config = replace(run.read_config(), precision="fp32", seed=arguments.seed)
    images = load_images(arguments.data, config.train.batch_size, device)
    files = {name: run.checkpoint("last") / f"{name}.safetensors" for name in roles}
    if missing_files := [file for file in files.values() if not file.is_file()]:
        raise UserError(f"--run {run.path}: there is no {missing_files[0]}")
    return config, images, build_networks(config, config.table, images.classes, device, files)


def engines(compile_too: bool) -> dict[str, EngineConfig]:
    """Return the parts that touch the attack, added in turn."""
    found = {
        "plain": every_part("off"),
        "folded": every_part("off", "fold"),
        "chain": every_part("off", "fold", "chain"),
        "chain, kernels": every_part("off", "fold", "chain", "kernels"),
    }
    if compile_too:
        found["compiled"] = every_part("off", "fold", "chain", "kernels", "compile")
    return found


NEEDS = {"folded": "fold", "chain": "chain", "chain, kernels": "kernels", "compiled": "compile"}


class Attacks:
    """Attacks the same networks on the same batches by different means."""

    def __init__(self, networks: Mapping[str, nn.Module], config: Config, batches: list[Batch]) -> None:
        self.networks = {name: network.eval() for name, network in networks.items()}
        self.config = config
        self.batches = batches
        self.device = batches[0].images.device

    def run(
        self, precision: Precision, engine: EngineConfig, start: int = 0, needs: str = ""
    ) -> list[Outcome]:
        """Attack every batch; another `start` is another noise to begin from.

        Raises:
            UserError: the part that it `needs` cannot be had.
        """
        with Flags.current().applied(), EngineLog() as log:
            number_format(precision).allow_tf32()
            step = self._step(precision, engine, start)
            found = [self._attacked(step, batch) for batch in self.batches]
        if reason := obstacle(needs, step, log.lines):
            raise UserError(reason)
        return [self._judged(images, batch) for images, batch in zip(found, self.batches, strict=True)]

    def _step(self, precision: Precision, engine: EngineConfig, start: int) -> TrainingStep:
        seed = self.config.seed + start
        config = replace(self.config, seed=seed, precision=precision, engine=engine)
        networks = {
            name: ready(copy.deepcopy(network), config, self.device)
            for name, network in self.networks.items()
        }
        return TrainingStep(config, config.table, networks)

    def _attacked(self, step: TrainingStep, batch: Batch) -> Tensor:
        images = batch.images.to(step.format.weights)
        return step.adversarial(images, batch.labels)["adversarial"].float()

    @torch.no_grad()
    def _judged(self, images: Tensor, batch: Batch) -> Outcome:
        with Flags(benchmark=False, cudnn_tf32=False, matmul_tf32=False).applied():
            logits = self.networks["student"](images)
            target = torch.softmax(self.networks["peer"](batch.images), dim=1)
        log_probabilities = torch.log_softmax(logits, dim=1)
        return Outcome(
            F.kl_div(log_probabilities, target, reduction="batchmean").item(),
            F.cross_entropy(logits, batch.labels).item(),
            100 * (logits.argmax(1) == batch.labels).float().mean().item(),
            images,
        )


def compare(
    report: Report,
    name: str,
    attacks: Attacks,
    precision: Precision,
    engine: EngineConfig,
    reference: list[Outcome],
    images: Images,
) -> None:
    """Attack by other means, and record how that compares."""
    needs = NEEDS.get(name.partition(", ")[2], "")
    try:
        add(report, name, attacks.run(precision, engine, needs=needs), reference, images)
    except (UserError, RuntimeError) as error:
        report.miss(name, one_line(error)[:200])


def add(report: Report, name: str, found: list[Outcome], reference: list[Outcome], images: Images) -> None:
    """Record losses, and differences to the reference batch by batch."""
    pairs = list(zip(found, reference, strict=True))
    same = [100 * ((a.images - b.images).abs() < SAME_PIXEL).float().mean().item() for a, b in pairs]
    off = [100 * (a.divergence / b.divergence - 1) for a, b in pairs]
    labels = {"data": images.name}
    report.add(
        record(name, [outcome.divergence for outcome in found], "divergence", **labels),
        record(name, off, "% off the reference", **labels),
        record(name, [outcome.cross_entropy for outcome in found], "cross-entropy", **labels),
        record(name, [outcome.accuracy for outcome in found], "% accuracy", **labels),
        record(name, same, "% identical pixels", **labels),
    )


def table_of(report: Report) -> Table:
    """Return all attacks."""
    table = Table(
        "attack", "KL reached", "off the reference, %", "20th..80th percentile", "cross-entropy",
        "accuracy, %", "identical pixels, %",
        title="medians over batches, judged in float32",
    )  # fmt: skip
    for entry in report.select("divergence"):
        off = next(other for other in report.select("% off the reference") if other.name == entry.name)
        rest = (beside(report, entry, unit) for unit in ("cross-entropy", "% accuracy", "% identical pixels"))
        table.add_row(entry.name, f"{entry.value:.4f}", f"{off.value:+.3f}", spread(off), *rest)
    return table


if __name__ == "__main__":
    start(main, Arguments)
