"""What a network costs: multiply-adds, and how long it takes, in alternation with others."""

import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from time import perf_counter
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry

WARM_UP = 2
"""Calls before those that are timed."""


@dataclass(frozen=True)
class Latency:
    """Milliseconds that a network takes for a batch.

    Attributes:
        median: of all timed calls.
        spread: from the first to the third quartile of them.
    """

    median: float
    spread: float


def parameter_count(network: nn.Module) -> int:
    """Return the number of parameters; buffers, such as BatchNorm's statistics, are none."""
    return sum(parameter.numel() for parameter in network.parameters())


@torch.no_grad()
def multiply_adds(network: nn.Module, size: tuple[int, int]) -> int:
    """Return the multiply-adds of convolutions and matrix products for one image (1, 3, H, W).

    Element-wise layers (normalisation, ReLU, sums) are not counted, as is usual. PyTorch's formulas count a
    multiplication and an addition as two.
    """
    device = next(network.parameters()).device
    counter = _FlopCounter()
    with counter:
        network(torch.zeros(1, 3, *size, device=device))
    return counter.total // 2


class _FlopCounter(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Adds up PyTorch's own formulas.

    PyTorch's counter imports torch._dynamo, and with it Triton, whose library prints "leaked" lines at exit.
    """

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.total = 0

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        # Otherwise the mode is wrapped for torch.compile, which imports it.
        return False

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        given = kwargs or {}
        result = func(*args, **given)
        if formula := flop_registry.get(func.overloadpacket):
            self.total += int(formula(*args, **given, out_val=result))
        return result


@torch.no_grad()
def latencies(
    networks: Sequence[nn.Module],
    sizes: Sequence[tuple[int, int]],
    batch: int,
    rounds: int,
    device: torch.device,
) -> list[Latency]:
    """Time networks in alternation: each round calls each of them once, so that all meet the same load.

    Args:
        networks: on the device, in eval mode.
        sizes: height and width of the images of each.
        batch: images in a batch.
        rounds: number of timed calls of each network.
        device: where they compute.
    """
    inputs = [torch.rand(batch, 3, *size, device=device) for size in sizes]
    inputs = [images.contiguous(memory_format=torch.channels_last) for images in inputs]
    pairs = list(zip(networks, inputs, strict=True))
    rows = [[_milliseconds(*pair) for pair in pairs] for _ in range(WARM_UP + rounds)][WARM_UP:]
    return [_latency(column) for column in zip(*rows, strict=True)]


def _milliseconds(network: nn.Module, images: Tensor) -> float:
    _wait(images.device)
    began = perf_counter()
    network(images)
    _wait(images.device)
    return 1000 * (perf_counter() - began)


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def _latency(times: Sequence[float]) -> Latency:
    if len(times) < 2:
        return Latency(times[0], 0.0)
    first, median, third = statistics.quantiles(times, n=4, method="inclusive")
    return Latency(median, third - first)
