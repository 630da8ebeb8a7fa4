"""A literal, slow transcription of ARD (Goldblum et al.), released code."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from tests.literal.shared import AttackSettings, BatchNormMode, cross_entropy_attack, kl_div


@dataclass
class Settings(AttackSettings):
    """ARD, released code, CIFAR-10: uniform unclamped start, train-mode attack."""

    attack_batch_norm: BatchNormMode = "train"
    clamp_start: bool = False
    attack_reduction: Literal["sum", "mean"] = "sum"
    """Of the CE inside the attack; the sign makes it irrelevant."""
    alpha: float = 1.0
    """Weight of the KL; that of the CE is 1 - alpha."""
    temperature: float = 30.0
    reduction: Literal["mean", "batchmean"] = "mean"
    """Of the KL; "mean" divides by B*C."""

    @classmethod
    def iad_repository(cls) -> Settings:
        """ARD as in the repository of IAD."""
        return cls(temperature=1.0, reduction="batchmean")


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
    """ARD (Goldblum et al.), released code, one training step (attack and outer step).

    1. Attack: maximise CE(S(x'), y), student in train mode.
    2. Student forward on x', train mode.
    3. Teacher forward on clean x, eval mode, no grad.
    4. Student forward on clean x, train mode; executed even if its CE has weight 0.
    5. alpha * tau^2 * KL(p_T(x; tau) || p_S(x'; tau)) + (1 - alpha) * CE(S(x), y); backward;
       step.

    Returned: "loss", and "teacher_kl" and "clean_ce" without their weights and without tau^2.
    """
    student = networks["student"]
    teacher = networks["teacher"].eval()
    tau = s.temperature

    # 1. The attack.
    x_adv = cross_entropy_attack(student, x, y, noise["adversarial"], s, s.attack_reduction)
    student.train()

    # 2. Student forward on x'.
    z_adv = student(x_adv)

    # 3. Teacher forward on clean x.
    with torch.no_grad():
        z_teacher = teacher(x)

    # 4. Student forward on clean x.
    z_clean = student(x)

    # 5. The loss, backward and step.
    teacher_kl = kl_div(z_adv, z_teacher, s.reduction, tau)
    clean_ce = nn.CrossEntropyLoss()(z_clean, y)
    loss = s.alpha * tau**2 * teacher_kl + (1.0 - s.alpha) * clean_ce
    optimizers["student"].zero_grad()
    loss.backward()
    optimizers["student"].step()

    return {"loss": loss.item(), "teacher_kl": teacher_kl.item(), "clean_ce": clean_ce.item()}
