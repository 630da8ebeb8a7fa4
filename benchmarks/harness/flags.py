"""PyTorch's process-wide switches, which each variant wants otherwise."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch


@dataclass(frozen=True)
class Flags:
    """Which switches a variant runs under.

    Attributes:
        benchmark: cuDNN tries its algorithms out at each new shape.
        cudnn_tf32: convolutions may round float32 to TF32.
        matmul_tf32: matrix products may.
    """

    benchmark: bool
    cudnn_tf32: bool
    matmul_tf32: bool

    @classmethod
    def current(cls) -> "Flags":
        """Read what is set now."""
        return cls(
            torch.backends.cudnn.benchmark,
            torch.backends.cudnn.allow_tf32,
            torch.backends.cuda.matmul.allow_tf32,
        )

    def set(self) -> None:
        """Set them for the process."""
        torch.backends.cudnn.benchmark = self.benchmark
        torch.backends.cudnn.allow_tf32 = self.cudnn_tf32
        torch.backends.cuda.matmul.allow_tf32 = self.matmul_tf32

    @contextmanager
    def applied(self) -> Iterator[None]:
        """Set them, and put back what was set before."""
        before = Flags.current()
        self.set()
        try:
            yield
        finally:
            before.set()


def released_flags() -> Flags:
    """Return what the released code runs under: PyTorch's defaults and cuDNN's search for algorithms."""
    return Flags(benchmark=True, cudnn_tf32=True, matmul_tf32=False)
