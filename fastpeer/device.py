"""The device: which one, networks placed on it, its streams, its memory running out."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import nn

from fastpeer.errors import UserError, one_line


@contextmanager
def memory_errors(setting: str) -> Iterator[None]:
    """Say in one line that the device's memory is full, and which setting to lower."""
    try:
        yield
    except torch.OutOfMemoryError:
        raise UserError(f"the device has too little memory: lower {setting}") from None


def choose_device(name: str) -> torch.device:
    """Return the device a flag names; auto is CUDA where there is one.

    Raises:
        UserError: no such device on this machine.
    """
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError, ImportError) as error:
        reason = one_line(error).split(". ")[0]
        raise UserError(f"--device {name}: cannot be used here ({reason}); try auto, cpu or cuda") from None
    if device.type not in ("cpu", "cuda"):
        raise UserError(f"--device {name}: only cpu and cuda are supported")
    if device.type == "cuda":
        # FFCV waits for the current device's stream, whichever that is.
        torch.cuda.set_device(device)
    return device


def placed(network: nn.Module, device: torch.device, dtype: torch.dtype) -> nn.Module:
    """Move a network to where and as what it computes, channels-last."""
    # torch's annotations do not know the memory_format of Module.to.
    return network.to(device, dtype).to(memory_format=torch.channels_last)  # type: ignore[call-overload,no-any-return]


def new_stream(device: torch.device) -> torch.cuda.Stream:
    """Return a CUDA stream that nobody else has.

    Streams come from pools of 32, round and round; FFCV takes many of normal priority and waits on them,
    which would end a capture that goes on there.
    """
    return torch.cuda.Stream(device, priority=-1)  # type: ignore[no-untyped-call]
