"""What a kernel launch should take on a GPU, by its bytes and operations."""

from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass


@dataclass(frozen=True)
class Gpu:
    """A GPU's published limits.

    Attributes:
        flops: bf16 multiply-adds of the tensor cores without sparsity, FLOP/s, two for each multiply-add.
        bandwidth: of its memory, B/s.
        copy_engine: whether it has Hopper's, without which auto does not take our own convolutions.
    """

    flops: float
    bandwidth: float
    copy_engine: bool = True


GPUS = {
    "A100": Gpu(312e12, 2.04e12, copy_engine=False),
    "H100": Gpu(989e12, 3.35e12),
    "H200": Gpu(989e12, 4.8e12),
}
"""80 GB SXM, 80 GB SXM, 141 GB SXM: NVIDIA's data sheets."""


@dataclass(frozen=True)
class Reached:
    """Which part of the limits kernels are expected to reach, and what the smallest takes.

    An H200 copied at 0.88 of its bandwidth and multiplied large matrices at 0.77 of its rate
    (`results/2026-11-27-nvidia-h200/3-throughput-own.json`); half the rate for convolutions is a guess.

    Attributes:
        arithmetic: of the tensor cores' rate, by convolutions.
        memory: of the bandwidth, by all kernels.
        least: seconds of a kernel that does next to nothing, in a CUDA graph.
    """

    arithmetic: float = 0.5
    memory: float = 0.88
    least: float = 2e-6


@dataclass(frozen=True)
class Launch:
    """One kernel launch.

    Attributes:
        kernel: what runs; names of our own kernels as the profiler shows them.
        flop: by tensor cores.
        bytes: read and written, each tensor once.
    """

    kernel: str
    flop: float
    bytes: float

    def seconds(self, gpu: Gpu, reached: Reached) -> float:
        """Return the predicted time."""
        arithmetic = self.flop / (gpu.flops * reached.arithmetic)
        memory = self.bytes / (gpu.bandwidth * reached.memory)
        return max(arithmetic, memory, reached.least)


def by_kernel(launches: Iterable[Launch], gpu: Gpu, reached: Reached) -> dict[str, tuple[int, float]]:
    """Return number of launches and seconds of each kernel, the longest first."""
    found: dict[str, tuple[int, float]] = defaultdict(lambda: (0, 0.0))
    for launch in launches:
        number, seconds = found[launch.kernel]
        found[launch.kernel] = number + 1, seconds + launch.seconds(gpu, reached)
    return dict(sorted(found.items(), key=lambda item: -item[1][1]))
