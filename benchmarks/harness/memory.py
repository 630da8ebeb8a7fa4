"""How much device memory a variant takes."""

import gc
from collections.abc import Callable
from dataclasses import dataclass

import torch


@dataclass(frozen=True)
class Memory:
    """Bytes that one variant takes.

    Attributes:
        allocated: highest sum of tensors alive in a step, of weights and optimizer state too. What a
            captured CUDA graph uses inside its pool is not in it.
        reserved: what the variant keeps from others while it runs, graph pools included.
    """

    allocated: int
    reserved: int


class MemoryMeter:
    """Measures one variant beside others that stay where they are; make it before the variant is built.

    On the CPU nothing is measured: PyTorch keeps no count there.
    """

    def __init__(self, device: torch.device) -> None:
        self.device = device
        if device.type == "cuda":
            self._tidy()
            self.allocated = torch.cuda.memory_allocated(device)
            self.reserved = torch.cuda.memory_reserved(device)

    def of(self, step: Callable[[], object]) -> Memory | None:
        """Do one step of a variant that is built and warm, and return what it takes."""
        if self.device.type != "cuda":
            return None
        self._tidy()
        torch.cuda.reset_peak_memory_stats(self.device)
        step()
        torch.cuda.synchronize(self.device)
        peak = torch.cuda.max_memory_allocated(self.device)
        return Memory(peak - self.allocated, torch.cuda.memory_reserved(self.device) - self.reserved)

    def _tidy(self) -> None:
        gc.collect()
        torch.cuda.synchronize(self.device)
        torch.cuda.empty_cache()
