"""How much memory a training takes, and which batch size would fit after the device has run out of it."""

import gc
import resource
import sys
from collections.abc import Callable

import torch

from fastpeer.data.stream import Batch
from fastpeer.step.step import TrainingStep

USABLE_SHARE = 0.95
"""Share of the memory that a step may plan with; fragmentation takes the rest."""


def peak_memory(device: torch.device) -> str:
    """Describe the most memory taken so far: the device's, and that of the process."""
    # In KiB, but on macOS in bytes.
    unit = 1 if sys.platform == "darwin" else 1024
    host = f"{resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 2**30:.1f} GiB of the process (RSS)"
    if device.type != "cuda":
        return host
    total = torch.cuda.get_device_properties(device).total_memory
    reserved = torch.cuda.max_memory_reserved(device)
    return f"{reserved / 2**30:.1f} of {total / 2**30:.1f} GiB of the device, {host}"


def out_of_memory(step: TrainingStep, batch: Batch) -> str:
    """Return an error line with the batch size that would fit, found by running small batches.

    Call it outside of the `except` clause: the exception's traceback keeps the step's tensors alive.

    Args:
        step: the step that ran out of memory; it runs uncaptured from now on.
        batch: the batch that did not fit.
    """
    size = len(batch.labels)
    fitting = _fitting_batch(step, batch) if step.device.type == "cuda" and size > 1 else 0
    advice = f", about {fitting} fit" if 0 < fitting < size else ""
    return f"the device has too little memory for a step of {size} images{advice}: lower --train.batch_size"


def largest_batch(measure: Callable[[int], int], small: tuple[int, int], capacity: int) -> int:
    """Return the largest batch size whose peak memory stays within the capacity, 0 if none does.

    Args:
        measure: returns a step's peak memory in bytes for a batch size; assumed to grow linearly.
        small: two batch sizes to measure, in ascending order.
        capacity: available memory in bytes.
    """
    first, second = (measure(size) for size in small)
    bytes_per_image = max(1.0, (second - first) / (small[1] - small[0]))
    return max(0, int((capacity - first) / bytes_per_image) + small[0])


def _fitting_batch(step: TrainingStep, batch: Batch) -> int:
    # The recorded graph holds its memory pool, and the failed step's tensors may sit in reference cycles.
    step.release()
    gc.collect()
    torch.cuda.empty_cache()
    size = len(batch.labels)
    small = (max(1, size // 16), max(2, size // 8))
    free, _ = torch.cuda.mem_get_info(step.device)
    capacity = int(USABLE_SHARE * (free + torch.cuda.memory_reserved(step.device)))

    def measure(images: int) -> int:
        # Only the second run counts: in the first, cuDNN tries its algorithms, with workspaces of their own.
        for _ in range(2):
            torch.cuda.reset_peak_memory_stats(step.device)
            step.run(batch.images[:images], batch.labels[:images])
        return torch.cuda.max_memory_allocated(step.device)

    try:
        return largest_batch(measure, small, capacity)
    except torch.OutOfMemoryError:
        return 0
