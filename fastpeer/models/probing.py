"""Running a network once to look at it, without leaving a trace in it or in the random generators."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import nn


@contextmanager
def undisturbed(network: nn.Module, device: torch.device) -> Iterator[None]:
    """Put a network into eval mode; at the end, restore each module's own mode and the random generators.

    Networks may keep parts of themselves in eval mode, and their code may draw random numbers.
    """
    modes = [(module, module.training) for module in network.modules()]
    try:
        with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
            network.eval()
            yield
    finally:
        for module, training in modes:
            module.training = training
