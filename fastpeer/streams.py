"""CUDA streams of one's own."""

import torch


def new_stream(device: torch.device) -> torch.cuda.Stream:
    """Return a CUDA stream that nobody else has.

    Streams come from pools of 32, round and round; FFCV takes many of normal priority and waits on them,
    which would end a capture that goes on there.
    """
    return torch.cuda.Stream(device, priority=-1)  # type: ignore[no-untyped-call]
