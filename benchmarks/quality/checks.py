"""Is the fast step the released one? Checked on the device at hand, by the differences in all weights.

python -m benchmarks.quality.checks
Fails (exit status 1) where a difference is beyond what rounding explains.
"""

import copy
import itertools
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from rich.table import Table
from torch import Tensor, nn

from benchmarks.harness.display import missing, show
from benchmarks.harness.engine_log import EngineLog
from benchmarks.harness.measuring import Flags
from benchmarks.harness.program import Common, start
from benchmarks.harness.record import Report, counted
from benchmarks.steps.cases import Case, measured_methods, measured_table
from benchmarks.steps.literal import LiteralStep
from benchmarks.steps.variants import every_part, ready_networks
from fastpeer.config import Config, EngineConfig, Precision
from fastpeer.data.counter import counter_key
from fastpeer.data.stream import Batch
from fastpeer.errors import UserError, one_line
from fastpeer.kernels.counter_bits import mixed, signed
from fastpeer.kernels.gaussian_start import gaussian_start
from fastpeer.kernels.uniform_start import uniform_start
from fastpeer.step.attacks import overruled
from fastpeer.step.precision import number_format
from fastpeer.step.step import TrainingStep

Networks = Mapping[str, nn.Module]
LEARNING_RATE = 0.125
"""A power of 2: PyTorch's fused SGD reads the rate in float32 on CUDA, where 0.1 is off by 1.5e-8."""
TURNED_PIXELS = 0.1
"""How far pixels that rounding sends the other way bring a step from the same step: measured, up to 0.04."""


@dataclass(frozen=True, kw_only=True)
class Arguments(Common):
    """Check the step on this device."""

    models: tuple[str, ...] = ("resnet18", "wideresnet10x1", "mobilenetv2")
    """Networks, as student and as peer."""
    methods: tuple[str, ...] = ()
    """Other methods than PeerAiD whose steps are checked too, with the first network; kdiga-ard is KDIGA on
    adversarial images."""
    batch: int = 16
    """Images in a step."""
    tail: bool = True
    """End with a smaller batch, as epochs do."""
    size: int = 32
    """Side of an image, in pixels."""
    steps: int = 4
    """Steps that are compared."""
    parts: tuple[str, ...] = ("fold", "chain", "kernels", "merge", "compile", "streams")
    """Parts that are compared with the step without any."""
    part_precisions: tuple[Precision, ...] = ("fp64", "fp32")
    """In which formats."""
    compile: bool = True
    """Let the engine's own choice compile; much of the time goes into that."""
    precisions: tuple[Precision, ...] = ("fp32", "bf16", "fp16")
    """Of the comparison of captured with uncaptured steps."""

    def __post_init__(self) -> None:
        if unknown := set(self.methods) - set(measured_methods()):
            raise UserError(f"--methods must be among {', '.join(measured_methods())}, got {unknown.pop()}")


@dataclass(frozen=True)
class Verdict:
    """What a check found.

    Attributes:
        name: of the check.
        difference: of the weights, see `relative_difference`.
        limit: what rounding explains.
        remarks: the lines that the engine logged.
    """

    name: str
    difference: float
    limit: float
    remarks: Sequence[str] = ()

    @property
    def passed(self) -> bool:
        """Whether the difference is small; NaN is not."""
        return self.difference <= self.limit


def main(arguments: Arguments) -> None:
    """Check, show and write; exit with 1 if anything failed."""
    device = arguments.chosen_device()
    report = Report("checks", arguments, device, arguments.json)
    verdicts: list[Verdict] = []
    report.notes |= {"failed": [], "remarks": {}}
    for name, check in all_checks(arguments, device):
        try:
            verdicts.append(check())
            add(verdicts[-1], report)
        except Exception as error:  # Whatever goes wrong in one check, the others are worth having.
            report.miss(name, one_line(error)[:300])
        report.save()
    show(table_of(verdicts), *missing(report))
    if report.missing or report.notes["failed"]:
        sys.exit(1)


def add(verdict: Verdict, report: Report) -> None:
    """Record a verdict."""
    report.add(counted(verdict.name, verdict.difference, "relative difference"))
    report.notes["failed"] += [] if verdict.passed else [verdict.name]
    if verdict.remarks:
        report.notes["remarks"][verdict.name] = list(verdict.remarks)


def all_checks(arguments: Arguments, device: torch.device) -> Iterator[tuple[str, Callable[[], Verdict]]]:
    """Yield the checks by name: of all networks, then of other methods."""
    for model in arguments.models:
        yield from checks(model, arguments, device).items()
    for method in arguments.methods:
        yield from method_checks(method, arguments, device).items()


def method_checks(
    method: str, arguments: Arguments, device: torch.device
) -> dict[str, Callable[[], Verdict]]:
    """Return the checks of a method's step."""
    trial = Trial(arguments.models[0], arguments, device, method)
    found: dict[str, Callable[[], Verdict]] = {
        f"{method}, fp64: the literal step": lambda: trial.released("auto")
    }
    for precision in arguments.precisions[:1] if device.type == "cuda" else ():
        found[f"{method}, {precision}: captured"] = lambda precision=precision: trial.captured(precision)  # type: ignore[misc]
    return found


IN_CHAIN = ("fold", "chain", "kernels")
NEEDED: Mapping[str, Sequence[str]] = {
    "chain": ("fold",),
    **dict.fromkeys(("convolutions", "stem", "head"), IN_CHAIN),
    **dict.fromkeys(("other_convolutions", "sign_bits"), (*IN_CHAIN, "convolutions")),
    "stem_step": (*IN_CHAIN, "stem"),
}
"""By part, those without which it does nothing."""


def checks(model: str, arguments: Arguments, device: torch.device) -> dict[str, Callable[[], Verdict]]:
    """Return all checks of a network, by name."""
    trial = Trial(model, arguments, device)
    found: dict[str, Callable[[], Verdict]] = {
        f"{model}, fp64, {switch}: the released step": lambda switch=switch: trial.released(switch)  # type: ignore[misc]
        for switch in ("off", "auto")
    }
    for part, precision in itertools.product(arguments.parts, arguments.part_precisions):
        name = f"{model}, {precision}, {part}: the plain step"
        found[name] = lambda part=part, precision=precision: trial.part(part, precision)  # type: ignore[misc]
    for precision in arguments.precisions:
        if device.type == "cuda":
            found[f"{model}, {precision}: captured"] = lambda precision=precision: trial.captured(precision)  # type: ignore[misc]
    found[f"{model}: learning rate 0 after the first step"] = lambda: trial.rate()
    return found


class Trial:
    """Trains one network by different steps, from the same weights and over the same batches."""

    def __init__(
        self, model: str, arguments: Arguments, device: torch.device, method: str = "peeraid"
    ) -> None:
        self.case = Case(model, "cifar10", arguments.batch, method)
        self.name = model if method == "peeraid" else method
        self.steps = arguments.steps
        self.device = device
        source = torch.Generator().manual_seed(7)
        last = max(arguments.batch - 3, 2) if arguments.tail else arguments.batch
        sizes = [arguments.batch] * (self.steps - 1) + [last]
        self.auto = EngineConfig(compile="auto" if arguments.compile else "off")
        self.batches = [_batch(size, arguments.size, source, device) for size in sizes]

    def released(self, switch: str) -> Verdict:
        """Compare with the released step in float64."""
        engine = self.auto if switch == "auto" else every_part("off")
        config = self._config("fp64", engine)
        expected, initial = self._literally(config)
        networks, log = self._fast(config)
        difference = relative_difference(networks, expected, initial)
        return Verdict(f"{self.name}, fp64, {switch}: the released step", difference, 1e-9, log)

    def part(self, part: str, precision: Precision) -> Verdict:
        """Compare one part, and those it needs, with the step without any.

        Below float64 one step is compared, in which networks with few samples at a BatchNorm differ already;
        rounding is then measured by how far the plain step is from float64. That varies: a gradient near 0
        whose sign rounding turns moves its pixel the other way in all steps to come, and whether one step or
        the other has such a pixel is chance.
        """
        steps = self.steps if precision == "fp64" else 1
        needed = (*NEEDED.get(part, ()), part)
        plain = self._config(precision, every_part("off"))
        initial, (expected, _) = self._initial(plain), self._fast(plain, steps)
        networks, log = self._fast(self._config(precision, every_part("off", *needed)), steps)
        limit = 1e-6
        if precision != "fp64":
            exact, _ = self._fast(self._config("fp64", every_part("off")), steps)
            limit = max(3 * relative_difference(expected, exact, initial), TURNED_PIXELS)
        difference = relative_difference(networks, expected, initial)
        return Verdict(f"{self.name}, {precision}, {part}: the plain step", difference, limit, log)

    def captured(self, precision: Precision) -> Verdict:
        """Compare a replayed CUDA graph with the same step run by the host; two such runs differ too."""
        config = self._config(precision, replace(self.auto, graph="on"))
        by_host = self._config(precision, replace(self.auto, graph="off"))
        initial = self._initial(config)
        networks, log = self._fast(config)
        expected, again = (self._fast(by_host)[0] for _ in range(2))
        noise = relative_difference(again, expected, initial)
        difference = relative_difference(networks, expected, initial)
        return Verdict(f"{self.name}, {precision}: captured", difference, max(3 * noise, TURNED_PIXELS), log)

    def rate(self) -> Verdict:
        """See that a learning rate of 0 reaches the step, captured or not: no weight moves any more."""
        config = self._config("fp32", self.auto)
        stopped: dict[str, nn.Module] = {}
        still, log = self._fast(config, stop_after=1, stopped=stopped)
        difference = relative_difference(still, stopped, self._initial(config), statistics=False)
        return Verdict(f"{self.name}: learning rate 0 after the first step", difference, 0.0, log)

    def _config(self, precision: Precision, engine: EngineConfig) -> Config:
        config = self.case.config(precision, engine)
        return replace(config, optim=replace(config.optim, lr=LEARNING_RATE))

    def _initial(self, config: Config) -> dict[str, nn.Module]:
        return ready_networks(self.case, config, self.device)

    def _fast(
        self, config: Config, steps: int = 0, stop_after: int = 0, stopped: dict[str, nn.Module] | None = None
    ) -> tuple[dict[str, nn.Module], list[str]]:
        """Train; from step `stop_after` on (if any) at a learning rate of 0.

        `stopped` takes copies of the networks as they are then.
        """
        with Flags.current().applied(), EngineLog() as log:
            number_format(config.precision).allow_tf32()
            networks = self._initial(config)
            step = TrainingStep(config, measured_table(config), networks)
            for number, batch in enumerate(self.batches[: steps or self.steps]):
                if stop_after and number == stop_after:
                    step.set_learning_rate(0.0)
                    if stopped is not None:
                        stopped |= copy.deepcopy(networks)
                step.train_on(_typed(batch, config), number)
        return networks, log.lines

    def _literally(self, config: Config) -> tuple[dict[str, nn.Module], dict[str, nn.Module]]:
        networks, initial = self._initial(config), self._initial(config)
        step = LiteralStep(config, networks)
        for number, batch in enumerate(self.batches):
            typed = _typed(batch, config)
            step(typed.images, typed.labels, start_noise(typed.images, config, number))
        return networks, initial


def relative_difference(
    found: Networks, expected: Networks, initial: Networks, statistics: bool = True
) -> float:
    """‖found − expected‖ over ‖expected − initial‖: the worst of all networks' weights and statistics.

    The two are judged apart, since statistics move much farther than weights and would hide them.
    """
    worst = 0.0
    for name in expected:
        if not any(weight.requires_grad for weight in expected[name].parameters()):
            continue  # A teacher does not move.
        numbers = zip(*(_flat(networks[name]) for networks in (found, expected, initial)), strict=True)
        for ours, theirs, before in list(numbers)[: 2 if statistics else 1]:
            worst = max(worst, ((ours - theirs).norm() / (theirs - before).norm()).item())
    return worst


def start_noise(images: Tensor, config: Config, number: int) -> dict[str, Tensor]:
    """Return the noise that fastpeer's step begins the attacks of a step with, by the attack."""
    zero, settings = torch.zeros_like(images), config.attack
    noise = {}
    for name, attack in measured_table(config).attacks.items():
        purpose = "attack" if name == "adversarial" else f"attack {name}"
        key = torch.tensor(signed(mixed(counter_key(config.seed, purpose), number)), device=images.device)
        draws: dict[str, Callable[[], Tensor]] = {
            "gaussian": lambda key=key: gaussian_start(zero, settings.start_std, key),  # type: ignore[misc]
            "uniform": lambda key=key: uniform_start(zero, settings.epsilon, key),  # type: ignore[misc]
            "none": lambda: zero,
        }
        noise[name] = draws[overruled(attack, settings).start]()
    return noise


def table_of(verdicts: Sequence[Verdict]) -> Table:
    """Return all verdicts."""
    table = Table("check", "relative difference", "limit", "verdict", "log of the engine")
    for verdict in verdicts:
        log = " ".join(verdict.remarks)
        table.add_row(
            verdict.name,
            f"{verdict.difference:.1e}",
            f"{verdict.limit:.0e}",
            "passed" if verdict.passed else "FAILED",
            log,
        )
    return table


def _flat(network: nn.Module) -> tuple[Tensor, Tensor]:
    """All weights, and all statistics."""
    statistics = [buffer.double() for buffer in network.buffers() if buffer.is_floating_point()]
    weights = [weight.detach().double() for weight in network.parameters()]
    return torch.cat([tensor.flatten() for tensor in weights]), torch.cat(
        [tensor.flatten() for tensor in statistics]
    )


def _batch(count: int, size: int, source: torch.Generator, device: torch.device) -> Batch:
    pixels = torch.randint(0, 256, (count, 3, size, size), generator=source)
    images = (pixels.double() / 255).to(device).contiguous(memory_format=torch.channels_last)
    return Batch(images, torch.randint(0, 10, (count,), generator=source).to(device))


def _typed(batch: Batch, config: Config) -> Batch:
    return replace(batch, images=batch.images.to(number_format(config.precision).weights))


if __name__ == "__main__":
    start(main, Arguments)
