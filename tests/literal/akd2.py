"""A literal, slow transcription of AKD2 (Chen et al., ICLR 2021), released code.

The weight averaging that goes with it is no part of a training step.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from tests.literal.shared import AttackSettings, BatchNormMode, cross_entropy_attack, kl_div


@dataclass
class Settings(AttackSettings):
    """AKD2, released code of its authors: uniform clamped start, train-mode attack."""

    attack_batch_norm: BatchNormMode = "train"
    clamp_start: bool = True
    attack_reduction: Literal["sum", "mean"] = "mean"
    """Of the CE inside the attack; the sign makes it irrelevant."""
    ce_weight: float = 0.3
    natural_teacher_weight: float = 0.1
    """Weight of the distillation from the standard-trained teacher."""
    teacher_weight: float = 0.6
    """Weight of the distillation from the adversarially trained teacher."""
    temperature: float = 2.0
    distillation: Literal["soft_cross_entropy", "kl"] = "soft_cross_entropy"
    """Both are summed over the classes and averaged over the batch; same gradient."""

    @classmethod
    def iad_repository(cls) -> Settings:
        """AKD2 as in the repository of IAD."""
        return cls(
            clamp_start=False,
            attack_reduction="sum",
            ce_weight=0.25,
            natural_teacher_weight=0.25,
            teacher_weight=0.5,
            temperature=1.0,
            distillation="kl",
        )


def distillation_loss(student_logits: Tensor, teacher_logits: Tensor, s: Settings) -> Tensor:
    """AKD2 (Chen et al.): soft cross-entropy or KL at temperature tau, without the tau^2."""
    if s.distillation == "kl":
        return kl_div(student_logits, teacher_logits, "batchmean", s.temperature)
    p_teacher = torch.softmax(teacher_logits / s.temperature, dim=1)
    log_p_student = torch.log_softmax(student_logits / s.temperature, dim=1)
    return (-(p_teacher * log_p_student).sum(dim=1)).mean()


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
    """AKD2 (Chen et al., ICLR 2021), released code, one training step (attack and outer step).

    1. Attack: maximise CE(S(x'), y), student in train mode.
    2. Student forward on x', train mode.
    3. Forwards of both teachers on x', eval mode, no grad.
    4. ce_weight * CE(S(x'), y) + tau^2 * (natural_teacher_weight * D(T_std)
       + teacher_weight * D(T_adv)); backward; step.

    Returned: "loss", and "adv_ce", "natural_teacher_kd" and "teacher_kd" without their weights
    and without tau^2.
    """
    student = networks["student"]
    teacher = networks["teacher"].eval()
    natural_teacher = networks["natural_teacher"].eval()
    tau = s.temperature

    # 1. The attack.
    x_adv = cross_entropy_attack(student, x, y, noise["adversarial"], s, s.attack_reduction)
    student.train()

    # 2. Student forward on x'.
    z_adv = student(x_adv)

    # 3. Forwards of the teachers on x'.
    with torch.no_grad():
        z_natural_teacher = natural_teacher(x_adv)
        z_teacher = teacher(x_adv)

    # 4. The loss, backward and step.
    adv_ce = nn.CrossEntropyLoss()(z_adv, y)
    natural_teacher_kd = distillation_loss(z_adv, z_natural_teacher, s)
    teacher_kd = distillation_loss(z_adv, z_teacher, s)
    loss = (
        s.ce_weight * adv_ce
        + s.natural_teacher_weight * tau**2 * natural_teacher_kd
        + s.teacher_weight * tau**2 * teacher_kd
    )
    optimizers["student"].zero_grad()
    loss.backward()
    optimizers["student"].step()

    return {
        "loss": loss.item(),
        "adv_ce": adv_ce.item(),
        "natural_teacher_kd": natural_teacher_kd.item(),
        "teacher_kd": teacher_kd.item(),
    }
