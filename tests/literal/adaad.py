"""A literal, slow transcription of AdaAD (Huang et al., CVPR 2023), released code."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from tests.literal.shared import AttackSettings, BatchNormMode, kl_div, pgd


@dataclass
class Settings(AttackSettings):
    """AdaAD, released code, CIFAR-10: start noise 0.001 * N(0, 1), unclamped; eval-mode attack."""

    attack_batch_norm: BatchNormMode = "eval"
    clamp_start: bool = False
    alpha: float = 1.0
    """Weight of the KL on x'; that on clean x is 1 - alpha."""
    reduction: Literal["mean", "batchmean"] = "mean"
    """Of both KLs: "mean" on CIFAR-10, "batchmean" (sum over B) on CIFAR-100."""


def attack(student: nn.Module, teacher: nn.Module, x: Tensor, noise: Tensor, s: Settings) -> Tensor:
    """AdaAD (Huang et al.), released code: maximise KL(p_T(x') || p_S(x')), summed.

    Both networks at x'; the gradient of the input flows through the teacher, too.
    """

    def loss_at(x_adv: Tensor) -> Tensor:
        z_teacher = teacher(x_adv)
        z_student = student(x_adv)
        return kl_div(z_student, z_teacher, "sum")

    return pgd(student, x, noise, loss_at, s, s.attack_batch_norm, s.clamp_start)


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
    """AdaAD (Huang et al., CVPR 2023), released code, one training step (attack and outer step).

    1. Attack: maximise KL(p_T(x') || p_S(x')) through both networks, student in eval mode.
    2. Student forward on clean x, train mode; executed even if its KL has weight 0.
    3. Student forward on x', train mode.
    4. Teacher forwards on clean x and on x', eval mode, no grad.
    5. alpha * KL(p_T(x') || p_S(x')) + (1 - alpha) * KL(p_T(x) || p_S(x)); backward; step.

    Returned: "loss", and "adv_kl" and "clean_kl" without their weights.
    """
    student = networks["student"]
    teacher = networks["teacher"].eval()

    # 1. The attack.
    x_adv = attack(student, teacher, x, noise["adversarial"], s)
    student.train()

    # 2. Student forward on clean x.
    z_clean = student(x)

    # 3. Student forward on x'.
    z_adv = student(x_adv)

    # 4. Teacher forwards.
    with torch.no_grad():
        z_teacher_clean = teacher(x)
        z_teacher_adv = teacher(x_adv)

    # 5. The loss, backward and step.
    adv_kl = kl_div(z_adv, z_teacher_adv, s.reduction)
    clean_kl = kl_div(z_clean, z_teacher_clean, s.reduction)
    loss = s.alpha * adv_kl + (1.0 - s.alpha) * clean_kl
    optimizers["student"].zero_grad()
    loss.backward()
    optimizers["student"].step()

    return {"loss": loss.item(), "adv_kl": adv_kl.item(), "clean_kl": clean_kl.item()}
