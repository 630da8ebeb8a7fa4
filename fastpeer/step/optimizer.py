"""SGD on all trained networks, as a captured step can run it."""

from collections.abc import Sequence

import torch
from torch import nn

from fastpeer.config import OptimConfig


def sgd(networks: Sequence[nn.Module], optim: OptimConfig) -> torch.optim.SGD:
    """One optimizer computes what one for each network would, and where fp16 overflows, all skip together.

    The rate is a tensor, so that a captured step sees it change. Momentum begins at zero, which is what the
    first step would make of it, but is also there when fp16 skips that step.
    """
    groups = [{"params": [one for one in network.parameters() if one.requires_grad]} for network in networks]
    optimizer = torch.optim.SGD(
        groups, lr=optim.lr, momentum=optim.momentum, weight_decay=optim.weight_decay, fused=True
    )
    device = groups[0]["params"][0].device
    # The CPU's kernel computes in double whatever the weights are, CUDA's in single.
    rate = torch.tensor(
        optim.lr, dtype=torch.float64 if device.type == "cpu" else torch.float32, device=device
    )
    for group in optimizer.param_groups:
        group["lr"] = rate
        for parameter in group["params"] if optim.momentum else ():
            optimizer.state[parameter]["momentum_buffer"] = torch.zeros_like(parameter)
    return optimizer
