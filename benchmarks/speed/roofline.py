"""How fast a training step could be: operations and bytes of the step, over the device's measured limits.

python -m benchmarks.speed.roofline --models resnet18 wideresnet34x10 --batch-sizes 128
Operations and bytes are counted on meta tensors, which have shapes and no numbers.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch
from rich.table import Table
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from benchmarks.harness.display import Panel, bar_plot, short, show, spread
from benchmarks.harness.measuring import Duration, Flags, Run, alternate
from benchmarks.harness.program import Common, start
from benchmarks.harness.record import Record, Report, counted, record
from benchmarks.steps.cases import Case, cases
from fastpeer.models import build_model


@dataclass(frozen=True)
class Format:
    """A format of matrix products: the operands' dtype, and whether float32 may round to TF32."""

    dtype: torch.dtype
    tf32: bool


MATMULS = {
    "bf16": Format(torch.bfloat16, False),
    "fp16": Format(torch.float16, False),
    "tf32": Format(torch.float32, True),
    "fp32": Format(torch.float32, False),
}


@dataclass(frozen=True)
class Limits:
    """Measured ceilings: FLOP/s by format of a large matrix product, and B/s of a copy, read plus written."""

    matmuls: dict[str, Record]
    copy: Record

    def records(self) -> list[Record]:
        """Return all of them."""
        return [*self.matmuls.values(), self.copy]

    def best_matmul(self) -> float:
        """Return the highest FLOP/s of any format."""
        return max(entry.value for entry in self.matmuls.values())


def measured_limits(device: torch.device, seconds: float) -> Limits:
    """Measure all limits in alternation, on random data, for about `seconds` each."""
    cuda = device.type == "cuda"
    side = 8192 if cuda else 512
    # A CPU has no TF32, and many emulate float16 slowly.
    formats = {name: kind for name, kind in MATMULS.items() if cuda or name in ("bf16", "fp32")}
    size = (1 << 30) if cuda else (1 << 27)
    runs = {name: product(side, kind.dtype, device) for name, kind in formats.items()}
    flags = {name: _flags(kind) for name, kind in formats.items()}
    rounds = alternate(
        {**runs, "copy": copying(size, device)},
        device,
        Duration(rounds=10, seconds=seconds / 10),
        {name: switches.applied for name, switches in flags.items()},
    )
    operations = 2.0 * side**3
    matmuls = {
        name: record(f"matrix product, {name}", rounds[name].rates(operations), "FLOP/s", side=side)
        for name in formats
    }
    return Limits(matmuls, record("copy", rounds["copy"].rates(2.0 * size), "B/s", size=size))


def product(side: int, dtype: torch.dtype, device: torch.device) -> Run:
    """Return a square matrix product of normal random numbers."""
    a, b, out = (torch.randn(side, side, device=device).to(dtype) for _ in range(3))
    return _repeated(lambda: torch.mm(a, b, out=out))


def copying(size: int, device: torch.device) -> Run:
    """Return a copy of `size` random bytes from one place of the device's memory to another."""
    source = torch.randint(0, 256, (size,), dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    return _repeated(lambda: target.copy_(source))


def _repeated(action: Callable[[], Tensor]) -> Run:
    def run(steps: int) -> None:
        for _ in range(steps):
            action()

    return run


def _flags(matmul: Format) -> Flags:
    return Flags(benchmark=False, cudnn_tf32=matmul.tf32, matmul_tf32=matmul.tf32)


aten = torch.ops.aten


@dataclass
class Counts:
    """What one eval-mode forward of one image does, in elements unless said otherwise.

    Attributes:
        flop: operations of convolutions and matrix products, two for each multiply-add.
        conv_in, conv_out: inputs and outputs of convolutions.
        norm: inputs of BatchNorms.
        relu: inputs of ReLUs.
        add: outputs of residual sums.
    """

    flop: int = 0
    conv_in: int = 0
    conv_out: int = 0
    norm: int = 0
    relu: int = 0
    add: int = 0


@dataclass(frozen=True)
class StepWork:
    """A step's needs for each image of the batch.

    Attributes:
        forward_flop: of one forward of the student.
        flop: of the whole step, nothing done twice.
        bytes_per_image: of the whole step in a 16-bit format, BatchNorm folded and pointwise operations
            fused into convolutions during the attack; the step's work on weights is shared by the batch.
    """

    forward_flop: float
    flop: float
    bytes_per_image: float


def step_work(case: Case, steps: int = 10) -> StepWork:
    """Count a step with `steps` steps of attack, peer and student being the same network."""
    model = build_on_meta(case)
    counts = count(model, case.size)
    weights = sum(weight.numel() for weight in model.parameters())
    # Attack: forward and input gradient, each as costly as a forward. Peer: in eval mode, and trained.
    # Student: trained on adversarial and on clean images. Training is three forwards' worth.
    forwards = 2 * steps + 1 + 3 + 3 + 3
    moved = steps * attack_bytes(counts) + forward_bytes(counts) + 3 * training_bytes(counts)
    return StepWork(counts.flop, forwards * counts.flop, moved + weight_bytes(weights) / case.batch)


def forward_bytes(counts: Counts, element: int = 2) -> float:
    """Return the bytes of a folded forward: each convolution reads, adds and writes once."""
    return element * (counts.conv_in + counts.conv_out + counts.add)


def attack_bytes(counts: Counts, element: int = 2) -> float:
    """Return the bytes of a folded forward and its input gradient, ReLU masks read from the outputs."""
    backward = 3 * counts.relu + counts.add + counts.conv_out + counts.conv_in
    return forward_bytes(counts, element) + element * backward


def training_bytes(counts: Counts, element: int = 2) -> float:
    """Return the bytes of a train-mode forward and backward.

    BatchNorm reads its input for the statistics, then reads and writes it; backward it reads input and
    gradient twice and writes once. Each convolution reads and writes once forward and once for each of its
    two gradients. ReLU and residual sums ride along.
    """
    convolutions = 3 * (counts.conv_in + counts.conv_out)
    return element * (convolutions + 8 * counts.norm + 2 * counts.add)


def weight_bytes(weights: int) -> float:
    """Return the bytes of folding and updating two networks: float32 weights, 16-bit folded ones.

    Folding reads 4 and writes 2; SGD reads weight, gradient and momentum and writes weight and momentum.
    """
    return 2 * weights * (6 + 20)


def build_on_meta(case: Case) -> torch.nn.Module:
    """Build the case's network without memory for its weights, in eval mode."""
    with torch.device("meta"):
        return build_model(case.model, case.classes).eval()


@torch.no_grad()
def count(model: torch.nn.Module, size: int) -> Counts:
    """Count a forward of one image (1, 3, size, size)."""
    counter = _Counter()
    with counter:
        model(torch.empty(1, 3, size, size, device="meta"))
    return counter.counts


class _Counter(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Counts the operations that a network consists of as they pass by."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.counts = Counts()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        packet = func.overloadpacket
        if packet is aten.convolution:
            self._convolution(args[0], args[1], result)
        elif packet in (aten.addmm, aten.mm):
            inputs, weights = args[-2], args[-1]
            self.counts.flop += 2 * inputs.shape[0] * weights.numel()
        elif packet in (aten.relu, aten.relu_, aten.hardtanh, aten.hardtanh_):
            self.counts.relu += args[0].numel()
        elif packet in (aten.add, aten.add_) and result.dim() == 4:
            self.counts.add += result.numel()
        elif "batch_norm" in packet.__name__:
            self.counts.norm += args[0].numel()
        return result

    def _convolution(self, images: Tensor, weight: Tensor, result: Tensor) -> None:
        # Each output sums over the weights of its own channel.
        self.counts.flop += 2 * result.numel() * weight[0].numel()
        self.counts.conv_in += images.numel()
        self.counts.conv_out += result.numel()


@dataclass(frozen=True, kw_only=True)
class Arguments(Common):
    """Count what a PeerAiD step needs, and measure what the device can do."""

    models: tuple[str, ...] = ("resnet18", "wideresnet34x10", "mobilenetv2")
    """Networks, as student and as peer."""
    datasets: tuple[str, ...] = ("cifar10", "tiny")
    """cifar10, cifar100 or tiny: sizes and classes."""
    batch_sizes: tuple[int, ...] = (128,)
    """Images in a step."""
    seconds: float = 1.0
    """Seconds for measuring each limit, about."""


def main(arguments: Arguments) -> None:
    """Measure, count, show and write."""
    device = arguments.chosen_device()
    report = Report("roofline", arguments, device, arguments.json)
    limits = measured_limits(device, arguments.seconds)
    report.add(*limits.records())
    show(limits_table(limits, report))
    table = Table(
        "network, shape, batch", "forward, GFLOP", "step, GFLOP", "step, MB", "arithmetic", "bytes", "floor",
        title="a step's floor; the last three in images/s",
    )  # fmt: skip
    for case in cases(arguments.models, arguments.datasets, arguments.batch_sizes):
        table.add_row(*row(case, limits, report))
    show(table)
    report.save()
    if arguments.plot is not None:
        bar_plot(arguments.plot, "Limits of the step", [Panel("floor", report.select("images/s at most"))])


def limits_table(limits: Limits, report: Report) -> Table:
    """Return the measured limits as a table."""
    table = Table("limit", "median", "20th..80th percentile", title=str(report.facts["device"]))
    for entry in limits.records():
        tera = replace(entry, value=entry.value / 1e12, p20=entry.p20 / 1e12, p80=entry.p80 / 1e12)
        table.add_row(entry.name, f"{short(tera.value)} T{entry.unit}", spread(tera))
    return table


def row(case: Case, limits: Limits, report: Report) -> list[str]:
    """Count a case, put it into the report, and return its row."""
    work = step_work(case)
    arithmetic, memory = limits_of_rate(work, limits)
    report.add(
        counted(case.title, work.forward_flop, "FLOP forward/image", **case.labels),
        counted(case.title, work.flop, "FLOP/image", **case.labels),
        counted(case.title, work.bytes_per_image, "B/image", **case.labels),
        counted(case.title, min(arithmetic, memory), "images/s at most", **case.labels),
    )
    rates = (arithmetic, memory, min(arithmetic, memory))
    return [
        case.title,
        f"{work.forward_flop / 1e9:.3f}",
        f"{work.flop / 1e9:.1f}",
        f"{work.bytes_per_image / 1e6:.1f}",
        *(short(rate) for rate in rates),
    ]


def limits_of_rate(work: StepWork, limits: Limits) -> tuple[float, float]:
    """Return the images/s that arithmetic and memory each would allow."""
    return limits.best_matmul() / work.flop, limits.copy.value / work.bytes_per_image


if __name__ == "__main__":
    start(main, Arguments)
