"""SGD on all trained networks, in a form that a CUDA graph can capture; which parameters it leaves alone."""

from collections.abc import Iterable, Mapping, Sequence
from fnmatch import fnmatchcase
from inspect import unwrap
from typing import Any

import torch
from torch import nn

from fastpeer.config import OptimConfig
from fastpeer.errors import UserError
from fastpeer.models.normalized import without_normalization
from fastpeer.suggestions import did_you_mean


def freeze(networks: Mapping[str, nn.Module], patterns: Sequence[str]) -> None:
    """Take the gradient, and so weight decay and momentum, from parameters that match a pattern.

    BatchNorm's running statistics are no parameters: those of frozen layers still move.

    Args:
        networks: the trained networks, by name.
        patterns: of names such as student.layer1.0.conv1.weight, with * ? and [], as for files.

    Raises:
        UserError: a pattern matches nothing, or a network has nothing left to train.
    """
    parameters = {
        f"{name}.{own}": parameter
        for name, network in networks.items()
        for own, parameter in without_normalization(network).named_parameters()
    }
    for pattern in patterns:
        matching = [name for name in parameters if fnmatchcase(name, pattern)]
        if not matching:
            near = did_you_mean(
                pattern, [*parameters, *_groups(parameters)], f"such as {next(iter(parameters))}"
            )
            raise UserError(f"--optim.freeze: no parameter matches {pattern!r}; {near}")
        for name in matching:
            parameters[name].requires_grad_(False)
    for name in networks:
        if patterns and not any(
            own.startswith(f"{name}.") and parameters[own].requires_grad for own in parameters
        ):
            raise UserError(f"--optim.freeze must leave some parameters of the {name} to train")


def describe_frozen(name: str, network: nn.Module) -> list[str]:
    """Return a line for the log if a trained network, called `name`, has frozen parameters; else no line."""
    parameters = list(network.parameters())
    numbers = [parameter.numel() for parameter in parameters]
    frozen = [parameter.numel() for parameter in parameters if not parameter.requires_grad]
    if not frozen:
        return []
    return [
        f"frozen: {sum(frozen):,} of {sum(numbers):,} parameters of the {name}, in {len(frozen)} of"
        f" {len(numbers)} tensors"
    ]


def _groups(names: Iterable[str]) -> list[str]:
    """Return patterns for everything below each level of dotted names."""
    parts = [name.split(".") for name in names]
    return list(dict.fromkeys(".".join([*own[:n], "*"]) for own in parts for n in range(1, len(own))))


class _Sgd(torch.optim.SGD):
    """SGD for steps that are not compiled as a whole.

    PyTorch wraps an optimizer's methods to keep them out of torch.compile, and imports the compiler for that:
    as long as importing PyTorch itself takes.
    """

    add_param_group: Any = unwrap(torch.optim.SGD.add_param_group)
    zero_grad: Any = unwrap(torch.optim.SGD.zero_grad)
    state_dict: Any = unwrap(torch.optim.SGD.state_dict)
    load_state_dict: Any = unwrap(torch.optim.SGD.load_state_dict)

    @torch.no_grad()
    def step(self) -> None:  # type: ignore[override]
        """Move the parameters along their gradients."""
        unwrap(torch.optim.SGD.step)(self)


def sgd(networks: Sequence[nn.Module], optim: OptimConfig) -> torch.optim.SGD:
    """Return one optimizer for all trained networks.

    It computes what one optimizer per network would; where fp16 gradients overflow, all networks skip the
    step together. Each parameter group's learning rate is the same tensor of shape (), on the device: set it
    in place, and a captured step sees it change.
    """
    groups = [{"params": [w for w in network.parameters() if w.requires_grad]} for network in networks]
    optimizer = _Sgd(
        groups, lr=optim.lr, momentum=optim.momentum, weight_decay=optim.weight_decay, fused=True
    )
    device = groups[0]["params"][0].device
    # The fused kernel computes in float64 on a CPU, whatever the weights are, and in float32 on CUDA.
    rate = torch.tensor(
        optim.lr, dtype=torch.float64 if device.type == "cpu" else torch.float32, device=device
    )
    for group in optimizer.param_groups:
        group["lr"] = rate
        # PyTorch would allocate the buffers in the first step, which fp16 may skip and a graph would capture.
        # A buffer of zeros gives that step the same momentum: 0 · momentum + gradient.
        for parameter in group["params"] if optim.momentum else ():
            optimizer.state[parameter]["momentum_buffer"] = torch.zeros_like(parameter)
    return optimizer
