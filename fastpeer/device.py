"""Choosing the device, placing networks on it, CUDA streams, and errors when its memory is full."""

import re
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import nn

from fastpeer.errors import UserError, one_line
from fastpeer.models.layers import NEEDS_PLANES


@contextmanager
def memory_errors(setting: str) -> Iterator[None]:
    """Turn an out-of-memory error into a `UserError` that names the setting to lower."""
    try:
        yield
    except torch.OutOfMemoryError:
        raise UserError(f"the device has too little memory: lower {setting}") from None


def choose_device(name: str, flag: str = "--device") -> torch.device:
    """Return the device that --device names: auto (CUDA if there is one), cpu, cuda or cuda:N; gpu is cuda.

    Args:
        name: as it was given.
        flag: what it was given by, for messages.

    Raises:
        UserError: another name, or this machine has no such device.
    """
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    if not re.fullmatch(r"cpu|(cuda|gpu)(:\d+)?", name):
        raise UserError(f"{flag} must be auto, cpu, cuda or cuda:N, got {name!r}")
    try:
        # Of the tensor, since torch.cuda.set_device wants a number and "cuda" has none.
        device = torch.empty(0, device=name.replace("gpu", "cuda")).device
    except (RuntimeError, AssertionError) as error:
        reason = one_line(error).split(". ")[0]
        raise UserError(f"{flag} {name}: cannot be used here ({reason}); try auto or cpu") from None
    if device.type == "cuda":
        # FFCV synchronises with streams of the current device, which must be the one that computes.
        torch.cuda.set_device(device)
    return device


def placed(network: nn.Module, device: torch.device, dtype: torch.dtype) -> nn.Module:
    """Move a network to a device and dtype, in place; return it. Weights are channels-last where they may."""
    moved = network.to(device, dtype)
    if any(getattr(module, NEEDS_PLANES, False) for module in network.modules()):
        return moved
    # torch's type annotations lack the memory_format argument of Module.to.
    return moved.to(memory_format=torch.channels_last)  # type: ignore[call-overload,no-any-return]


def new_stream(device: torch.device) -> torch.cuda.Stream:
    """Return a CUDA stream that FFCV does not share.

    PyTorch hands out streams round robin from a pool of 32 for each priority. FFCV takes many of normal
    priority and synchronises with them, which would invalidate a graph capture on the same stream; high
    priority has a pool of its own.
    """
    return torch.cuda.Stream(device, priority=-1)  # type: ignore[no-untyped-call]
