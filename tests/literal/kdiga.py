"""A literal, slow transcription of KDIGA (Shao et al., arXiv 2110.12072), released code.

Knowledge distillation with input-gradient alignment: the plain variant without an attack, and
the one on top of ARD.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from tests.literal.shared import AttackSettings, BatchNormMode, cross_entropy_attack, kl_div


@dataclass
class Settings(AttackSettings):
    """KDIGA, released code; the attack (only "kdiga_ard") is that of ARD."""

    attack_batch_norm: BatchNormMode = "train"
    clamp_start: bool = False
    attack_reduction: Literal["sum", "mean"] = "sum"
    """Of the CE inside the attack; the sign makes it irrelevant."""
    variant: Literal["kdiga", "kdiga_ard"] = "kdiga"
    alpha: float = 0.5
    """Weight of the KL; that of the CE is 1 - alpha."""
    gamma: float = 0.5
    """Weight of the distance of the input gradients, divided by B."""
    temperature: float = 1.0
    reduction: Literal["mean", "batchmean"] = "mean"
    """Of the KL; "mean" (released code) divides by B*C."""


def gradient_distance(student: nn.Module, teacher: nn.Module, x: Tensor, y: Tensor) -> Tensor:
    """KDIGA (Shao et al.), released code: ||grad_x CE_S - grad_x CE_T||_2.

    Gradients of the batch-mean CE at clean x; Frobenius norm of the whole batch, neither of
    each sample nor squared.  The student's gradient keeps its graph, the teacher's is a
    constant.  One forward of the student.
    """
    cross_entropy = nn.CrossEntropyLoss()

    x_student = x.detach().clone().requires_grad_(True)
    student_ce = cross_entropy(student(x_student), y)
    (student_gradient,) = torch.autograd.grad(student_ce, [x_student], create_graph=True)

    x_teacher = x.detach().clone().requires_grad_(True)
    teacher_ce = cross_entropy(teacher(x_teacher), y)
    (teacher_gradient,) = torch.autograd.grad(teacher_ce, [x_teacher])

    return torch.linalg.vector_norm(student_gradient - teacher_gradient.detach())


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
    """KDIGA (Shao et al.), released code, one training step.

    "kdiga":

    1. Student forward on clean x, train mode: KD (teacher at x, eval, no grad) and CE.
    2. Student forward on clean x, train mode: its input gradient.

    "kdiga_ard":

    1. Attack: maximise CE(S(x'), y), student in train mode.
    2. Student forward on x', train mode: KD (teacher at x', eval, no grad).
    3. Student forward on clean x, train mode: its input gradient.
    4. Student forward on clean x, train mode: CE.

    Then alpha * tau^2 * KL + (1 - alpha) * CE(S(x), y) + gamma / B * distance of the input
    gradients at clean x; backward (through the student's input gradient); step.

    Returned: "loss", and "teacher_kl", "clean_ce" and "gradient_distance" without their weights,
    without tau^2 and without 1 / B.
    """
    student = networks["student"]
    teacher = networks["teacher"].eval()
    tau = s.temperature
    batch_size = x.shape[0]
    student.train()

    if s.variant == "kdiga":
        z_student = student(x)
        with torch.no_grad():
            z_teacher = teacher(x)
        distance = gradient_distance(student, teacher, x, y)
        z_clean = z_student
    else:
        x_adv = cross_entropy_attack(student, x, y, noise["adversarial"], s, s.attack_reduction)
        student.train()
        z_student = student(x_adv)
        with torch.no_grad():
            z_teacher = teacher(x_adv)
        distance = gradient_distance(student, teacher, x, y)
        z_clean = student(x)

    teacher_kl = kl_div(z_student, z_teacher, s.reduction, tau)
    clean_ce = nn.CrossEntropyLoss()(z_clean, y)
    loss = s.alpha * tau**2 * teacher_kl + (1.0 - s.alpha) * clean_ce + (s.gamma / batch_size) * distance
    optimizers["student"].zero_grad()
    loss.backward()
    optimizers["student"].step()

    return {
        "loss": loss.item(),
        "teacher_kl": teacher_kl.item(),
        "clean_ce": clean_ce.item(),
        "gradient_distance": distance.item(),
    }
