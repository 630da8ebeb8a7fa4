"""What a device can do, measured: its matrix products and its memory."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from benchmarks.harness.flags import Flags
from benchmarks.harness.record import Record, record
from benchmarks.harness.timing import Duration, Run, alternate


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
        return max(one.value for one in self.matmuls.values())


def measured_limits(device: torch.device, seconds: float) -> Limits:
    """Measure all limits in alternation, on random data, for about `seconds` each."""
    cuda = device.type == "cuda"
    side = 8192 if cuda else 512
    # A CPU has no TF32, and many emulate float16 slowly.
    formats = {name: one for name, one in MATMULS.items() if cuda or name in ("bf16", "fp32")}
    size = (1 << 30) if cuda else (1 << 27)
    runs = {name: product(side, one.dtype, device) for name, one in formats.items()}
    flags = {name: _flags(one) for name, one in formats.items()}
    rounds = alternate(
        {**runs, "copy": copying(size, device)},
        device,
        Duration(rounds=10, seconds=seconds / 10),
        {name: one.applied for name, one in flags.items()},
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
