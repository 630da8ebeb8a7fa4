"""SGD on all trained networks, in a form that a CUDA graph can capture."""

from collections.abc import Sequence

import torch
from torch import nn

from fastpeer.config import OptimConfig


def sgd(networks: Sequence[nn.Module], optim: OptimConfig) -> torch.optim.SGD:
    """Return one optimizer for all trained networks.

    It computes what one optimizer per network would; where fp16 gradients overflow, all networks skip the
    step together. Each parameter group's learning rate is the same tensor of shape (), on the device: set it
    in place, and a captured step sees it change.
    """
    groups = [{"params": [w for w in network.parameters() if w.requires_grad]} for network in networks]
    optimizer = torch.optim.SGD(
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
