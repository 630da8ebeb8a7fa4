"""A literal, slow transcription of IAD-I (Zhu et al., ICLR 2022), released code.

IAD-I stands on ARD.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from tests.literal.shared import (
    AttackSettings,
    BatchNormMode,
    cross_entropy_attack,
    kl_div,
    kl_div_of_samples,
)


@dataclass
class Settings(AttackSettings):
    """IAD-I, released code, CIFAR-10: uniform unclamped start, train-mode attack."""

    attack_batch_norm: BatchNormMode = "train"
    clamp_start: bool = False
    attack_reduction: Literal["sum", "mean"] = "sum"
    """Of the CE inside the attack; the sign makes it irrelevant."""
    alpha: float = 1.0
    """Weight of the distillation; that of the CE is 1 - alpha."""
    beta: float = 0.1
    """Exponent of the teacher's probability of the label in a_i."""
    temperature: float = 1.0
    begin: int = 60
    """First 0-based epoch with the student's own term."""
    clean_target_grad: bool = True
    """Gradient flows into the student's clean logits, the target of its own term; True is the
    released code."""


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
    """IAD-I (Zhu et al., ICLR 2022), released code, one training step (attack and outer step).

    1. Attack: maximise CE(S(x'), y), student in train mode.
    2. Student forward on x', train mode.
    3. Student forward on x' again, train mode; its result is not used.
    4. Teacher forwards on clean x (the target) and on x' (for a_i), eval mode, no grad.
    5. From the epoch ``begin`` on: student forward on clean x, train mode, the target of the
       student's own term, not detached.
    6. Student forward on clean x, train mode; executed even if its CE has weight 0.
    7. alpha * [tau^2 * KL(p_T(x; tau) || p_S(x'; tau)) (batchmean)
       + 1/B * sum_i (1 - a_i) * KL(p_S(x_i) || p_S(x'_i))] + (1 - alpha) * CE(S(x), y), with
       a_i = (p_T(x'_i)[y_i])^beta; the teacher's term is not multiplied by a_i; backward; step.

    Returned: "loss"; "teacher_kl" and "clean_ce" without their weights and without tau^2;
    "self_kl", the student's own term with 1 - a_i inside (0 before ``begin``); "trust", the
    mean of a_i.
    """
    student = networks["student"]
    teacher = networks["teacher"].eval()
    tau = s.temperature
    batch_size = x.shape[0]

    # 1. The attack.
    x_adv = cross_entropy_attack(student, x, y, noise["adversarial"], s, s.attack_reduction)
    student.train()

    # 2. Student forward on x'.
    z_adv = student(x_adv)

    # 3. Student forward on x' again, unused.
    student(x_adv)

    # 4. Teacher forwards on clean x and on x'.  Assumption: a_i is at temperature 1.
    with torch.no_grad():
        z_teacher = teacher(x)
        p_teacher_adv = torch.softmax(teacher(x_adv), dim=1)
        a = p_teacher_adv[torch.arange(batch_size, device=y.device), y] ** s.beta

    teacher_kl = kl_div(z_adv, z_teacher, "batchmean", tau)
    distillation = tau**2 * teacher_kl
    self_kl = torch.zeros_like(teacher_kl)

    # 5. Student forward on clean x, the target of its own term.  Assumptions: that term is at
    # temperature 1 and without tau^2, and alpha multiplies it as well; with the released tau = 1
    # and alpha = 1 nothing of this shows.
    if epoch >= s.begin:
        z_target = student(x)
        if not s.clean_target_grad:
            z_target = z_target.detach()
        self_kl = (1.0 / batch_size) * ((1.0 - a) * kl_div_of_samples(z_adv, z_target)).sum()
        distillation = distillation + self_kl

    # 6. Student forward on clean x.
    z_clean = student(x)
    clean_ce = nn.CrossEntropyLoss()(z_clean, y)

    # 7. The loss, backward and step.
    loss = s.alpha * distillation + (1.0 - s.alpha) * clean_ce
    optimizers["student"].zero_grad()
    loss.backward()
    optimizers["student"].step()

    return {
        "loss": loss.item(),
        "teacher_kl": teacher_kl.item(),
        "self_kl": self_kl.item(),
        "clean_ce": clean_ce.item(),
        "trust": a.mean().item(),
    }
