"""What each layer of a network should take: library and one fused pass behind it, beside our own kernels."""

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from rich.table import Table

from benchmarks.harness.display import short
from benchmarks.harness.record import Report, counted
from benchmarks.speed.launch_costs import Gpu, Launch, Reached
from benchmarks.speed.launches import layers
from benchmarks.speed.layer_cases import Shape, shapes_of
from benchmarks.steps.cases import Case
from fastpeer.models import build_model

BF16 = 2
"""Bytes of a value."""


@dataclass(frozen=True)
class LayerCost:
    """One direction of a layer: what it launches either way.

    Attributes:
        layer: its shape and direction.
        library: cuDNN's or PyTorch's part, and what Inductor fuses behind it into one pass.
        own: our kernels.
    """

    layer: str
    library: tuple[Launch, ...]
    own: tuple[Launch, ...]


def layer_costs(case: Case) -> Iterator[LayerCost]:
    """Yield the convolutions of the attack that our kernel takes, then the BatchNorms of the training passes.

    Each convolution has what may surround it: bias, residual and ReLU; back, a sum and a mask.
    """
    for shape in shapes_of(case.model, case.sides[0]):
        yield from _convolution(shape, case.batch)
    for (channels, side), number in norms_of(case).items():
        yield from _norm(
            f"BatchNorm, {number} of {channels} x {side} x {side}", case.batch * channels * side**2
        )


def _convolution(shape: Shape, batch: int) -> Iterator[LayerCost]:
    pixels = shape.pixels(batch)
    before, behind = BF16 * pixels[0] * shape.into, BF16 * pixels[1] * shape.out
    weights = BF16 * shape.side**2 * shape.into * shape.out
    read = before / shape.stride**2 if shape.side == 1 else before
    flop = shape.flop(batch)
    yield LayerCost(
        f"{shape}, forward",
        (Launch("convolution", flop, read + weights + behind), Launch("pass", 0, 3 * behind)),
        (Launch("own", flop, read + weights + (2 + 1 / 16) * behind),),
    )
    yield LayerCost(
        f"{shape}, back",
        (Launch("convolution", flop, before + weights + behind), Launch("pass", 0, 4 * before)),
        (Launch("own", flop, (2 + 1 / 16) * before + weights + behind),),
    )


def norms_of(case: Case) -> Counter[tuple[int, int]]:
    """Count a network's BatchNorms by channels and side of what they are given."""
    with torch.device("meta"):
        network = build_model(case.model, case.classes).eval()
        found = layers(network, torch.empty(1, 3, *case.sides))
    return Counter((layer.x.shape[1], layer.x.shape[2]) for layer in found if layer.kind == "norm")


def _norm(layer: str, values: int) -> Iterator[LayerCost]:
    """Yield train-mode BatchNorm with ReLU: Inductor finds the mask in y, ours in x, which is read anyway."""
    x = float(BF16 * values)

    def passes(*reads_and_writes: int) -> tuple[Launch, ...]:
        return tuple(Launch("pass", 0, number * x) for number in reads_and_writes)

    yield LayerCost(f"{layer}, forward", passes(1, 2), passes(1, 2))
    yield LayerCost(f"{layer}, back", passes(3, 4), passes(2, 3))


def layers_of(case: Case, name: str, gpu: Gpu, reached: Reached, report: Report) -> Table:
    """Return a row for each layer and direction: predicted microseconds of a launch, and their quotient."""
    columns = ("cuDNN, or sums", "pass behind", "together", "ours", "quotient")
    table = Table("layer", *columns, title=f"{case.title} on {name}: predicted µs")
    for cost in layer_costs(case):
        first, second, own = (_microseconds(part, gpu, reached) for part in _parts(cost))
        for way, value in (("library", first + second), ("own", own)):
            report.add(counted(cost.layer, value, "µs predicted", **case.labels, gpu=name, way=way))
        table.add_row(cost.layer, *map(short, (first, second, first + second, own, (first + second) / own)))
    return table


def _parts(cost: LayerCost) -> tuple[tuple[Launch, ...], ...]:
    return cost.library[:1], cost.library[1:], cost.own


def _microseconds(launches: tuple[Launch, ...], gpu: Gpu, reached: Reached) -> float:
    return sum(1e6 * launch.seconds(gpu, reached) for launch in launches)
