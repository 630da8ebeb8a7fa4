"""A literal, slow transcription of RSLAD (Zi et al., ICCV 2021), released code."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from tests.literal.shared import AttackSettings, BatchNormMode, hand_written_kl, kl_div, pgd


@dataclass
class Settings(AttackSettings):
    """RSLAD, released code, CIFAR-10: start noise 0.001 * N(0, 1), unclamped; eval-mode attack."""

    attack_batch_norm: BatchNormMode = "eval"
    clamp_start: bool = False
    adv_weight: float = 5 / 6
    clean_weight: float = 1 / 6
    scale: float = 1.0
    """Of both terms: 1 on CIFAR-10, 10 on CIFAR-100."""


def attack(student: nn.Module, teacher: nn.Module, x: Tensor, noise: Tensor, s: Settings) -> Tensor:
    """RSLAD (Zi et al.), released code: maximise KL(p_T(x) || p_S(x')), summed.

    The teacher on clean x, no grad, once for each batch.
    """
    with torch.no_grad():
        z_teacher = teacher(x)

    def loss_at(x_adv: Tensor) -> Tensor:
        return kl_div(student(x_adv), z_teacher, "sum")

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
    """RSLAD (Zi et al., ICCV 2021), released code, one training step (attack and outer step).

    1. Attack: maximise KL(p_T(x) || p_S(x')), student in eval mode.
    2. Teacher forward on clean x, eval mode, no grad.
    3. Student forward on x', train mode.
    4. Student forward on clean x, train mode.
    5. adv_weight * KL(p_T(x) || p_S(x')) + clean_weight * KL(p_T(x) || p_S(x)), both written by
       hand with the offset 1e-5 and averaged over all entries; backward; step.

    Returned: "loss", and "adv_kl" and "clean_kl" with the scale but without their weights.
    """
    student = networks["student"]
    teacher = networks["teacher"].eval()

    # 1. The attack.
    x_adv = attack(student, teacher, x, noise["adversarial"], s)
    student.train()

    # 2. Teacher forward on clean x.
    with torch.no_grad():
        z_teacher = teacher(x)

    # 3. Student forward on x'.
    z_adv = student(x_adv)

    # 4. Student forward on clean x.
    z_clean = student(x)

    # 5. The loss, backward and step.
    adv_kl = hand_written_kl(z_adv, z_teacher, s.scale)
    clean_kl = hand_written_kl(z_clean, z_teacher, s.scale)
    loss = s.adv_weight * adv_kl + s.clean_weight * clean_kl
    optimizers["student"].zero_grad()
    loss.backward()
    optimizers["student"].step()

    return {"loss": loss.item(), "adv_kl": adv_kl.item(), "clean_kl": clean_kl.item()}
