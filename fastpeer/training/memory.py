"""Which batch size would have fitted, when the device's memory ran out."""

import gc
from collections.abc import Callable

import torch

from fastpeer.data.stream import Batch
from fastpeer.step.step import TrainingStep

SHARE = 0.95
"""Of the memory there is; the rest goes to fragments."""


def out_of_memory(step: TrainingStep, batch: Batch) -> str:
    """Say in one line which batch size fits, from what small batches take now.

    Call it outside of the `except` clause: the exception keeps what the step had allocated.
    """
    size = len(batch.labels)
    fits = _fitting(step, batch) if step.device.type == "cuda" and size > 1 else 0
    advice = f", about {fits} fit" if 0 < fits < size else ""
    return f"the device has too little memory for a step of {size} images{advice}: lower --train.batch_size"


def largest_batch(measure: Callable[[int], int], small: tuple[int, int], capacity: int) -> int:
    """Return the largest batch whose peak stays within a capacity.

    Args:
        measure: peak bytes of a step on so many images; taken to grow linearly.
        small: two batch sizes, in ascending order.
        capacity: bytes.
    """
    first, second = (measure(size) for size in small)
    each = max(1.0, (second - first) / (small[1] - small[0]))
    return max(0, int((capacity - first) / each) + small[0])


def _fitting(step: TrainingStep, batch: Batch) -> int:
    step.release()
    gc.collect()
    torch.cuda.empty_cache()
    size = len(batch.labels)
    small = (max(1, size // 16), max(2, size // 8))
    free, _ = torch.cuda.mem_get_info(step.device)
    capacity = int(SHARE * (free + torch.cuda.memory_reserved(step.device)))

    def measure(images: int) -> int:
        # The first run of a shape also searches for algorithms, with memory of its own.
        for _ in range(2):
            torch.cuda.reset_peak_memory_stats(step.device)
            step.run(batch.images[:images], batch.labels[:images])
        return torch.cuda.max_memory_allocated(step.device)

    try:
        return largest_batch(measure, small, capacity)
    except torch.OutOfMemoryError:
        return 0
