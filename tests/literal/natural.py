"""Standard training on clean inputs, no attack."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn


@dataclass
class Settings:
    """Standard training has no numbers of its own."""


def training_step(
    networks: dict[str, nn.Module],
    optimizers: dict[str, torch.optim.Optimizer],
    x: Tensor,
    y: Tensor,
    s: Settings,
    noise: dict[str, Tensor],
    epoch: int = 0,
    state: dict[str, float] | None = None,
) -> dict[str, float]:
    """Standard training: one forward on clean x in train mode, CE (mean), backward, step.

    Returned: "loss" and "clean_ce", which are the same.
    """
    student = networks["student"]
    student.train()

    # 1. Student forward on clean x.
    z_clean = student(x)

    # 2. The loss.
    clean_ce = nn.CrossEntropyLoss()(z_clean, y)
    loss = clean_ce

    # 3. Backward and step.
    optimizers["student"].zero_grad()
    loss.backward()
    optimizers["student"].step()

    return {"loss": loss.item(), "clean_ce": clean_ce.item()}
