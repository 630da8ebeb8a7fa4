"""A literal, slow transcription of IAD-II (Zhu et al., ICLR 2022), released code.

IAD-II stands on AKD2.
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
    """IAD-II, released code, CIFAR-10: uniform unclamped start, train-mode attack."""

    attack_batch_norm: BatchNormMode = "train"
    clamp_start: bool = False
    attack_reduction: Literal["sum", "mean"] = "sum"
    """Of the CE inside the attack; the sign makes it irrelevant."""
    ce_weight: float = 0.25
    natural_teacher_weight: float = 0.25
    """Weight of the KL from the standard-trained teacher."""
    teacher_weight: float = 0.5
    """Weight of the KL from the adversarially trained teacher and from the student itself."""
    beta: float = 0.1
    """Exponent of the teacher's probability of the label in a_i."""
    temperature: float = 1.0
    begin: int = 40
    """First 0-based epoch with a_i and the student's own term."""
    clean_target_grad: bool = True
    """Gradient flows into the student's clean logits, the target of its own term.

    Assumption: as in IAD-I of the same repository they are not detached.
    """


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
    """IAD-II (Zhu et al., ICLR 2022), released code, one training step (attack and outer step).

    1. Attack: maximise CE(S(x'), y), student in train mode.
    2. Student forward on x', train mode.
    3. Forwards of both teachers on x', eval mode, no grad.
    4. From the epoch ``begin`` on: a_i = (p_Tadv(x'_i)[y_i])^beta, and a student forward on
       clean x, train mode, the target of the student's own term.  Before: a_i = 1 and no such
       term.
    5. ce_weight * CE(S(x'), y)
       + teacher_weight * tau^2 * 1/B * sum_i [a_i * KL(p_Tadv(x'_i) || p_S(x'_i))
       + (1 - a_i) * KL(p_S(x_i) || p_S(x'_i))]
       + natural_teacher_weight * tau^2 * KL(p_Tstd(x') || p_S(x')) (batchmean); backward; step.

    Returned: "loss"; "adv_ce" and "natural_teacher_kl" without their weights and without tau^2;
    "teacher_kl" with a_i and "self_kl" with 1 - a_i inside (0 before ``begin``), otherwise
    likewise; "trust", the mean of a_i.
    """
    student = networks["student"]
    teacher = networks["teacher"].eval()
    natural_teacher = networks["natural_teacher"].eval()
    tau = s.temperature
    batch_size = x.shape[0]

    # 1. The attack.
    x_adv = cross_entropy_attack(student, x, y, noise["adversarial"], s, s.attack_reduction)
    student.train()

    # 2. Student forward on x'.
    z_adv = student(x_adv)

    # 3. Forwards of the teachers on x'.
    with torch.no_grad():
        z_teacher = teacher(x_adv)
        z_natural_teacher = natural_teacher(x_adv)

    # The teachers' KLs are at the temperature tau.
    adv_ce = nn.CrossEntropyLoss()(z_adv, y)
    natural_teacher_kl = kl_div(z_adv, z_natural_teacher, "batchmean", tau)
    teacher_kl_of_samples = kl_div_of_samples(z_adv, z_teacher, tau)

    # 4. The weights and the student's own term, both at temperature 1; its factor is tau^2 all the same.
    if epoch >= s.begin:
        p_teacher = torch.softmax(z_teacher, dim=1)
        a = p_teacher[torch.arange(batch_size, device=y.device), y] ** s.beta
        z_target = student(x)
        if not s.clean_target_grad:
            z_target = z_target.detach()
        teacher_kl = (1.0 / batch_size) * (a * teacher_kl_of_samples).sum()
        self_kl = (1.0 / batch_size) * ((1.0 - a) * kl_div_of_samples(z_adv, z_target, 1.0)).sum()
    else:
        a = torch.ones_like(teacher_kl_of_samples)
        teacher_kl = (1.0 / batch_size) * teacher_kl_of_samples.sum()
        self_kl = torch.zeros_like(teacher_kl)

    # 5. The loss, backward and step.
    loss = (
        s.ce_weight * adv_ce
        + s.teacher_weight * tau**2 * (teacher_kl + self_kl)
        + s.natural_teacher_weight * tau**2 * natural_teacher_kl
    )
    optimizers["student"].zero_grad()
    loss.backward()
    optimizers["student"].step()

    return {
        "loss": loss.item(),
        "adv_ce": adv_ce.item(),
        "teacher_kl": teacher_kl.item(),
        "self_kl": self_kl.item(),
        "natural_teacher_kl": natural_teacher_kl.item(),
        "trust": a.mean().item(),
    }
