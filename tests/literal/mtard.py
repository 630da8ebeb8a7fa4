"""A literal, slow transcription of MTARD (Zhao et al., ECCV 2022), released code."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from tests.literal.shared import (
    AttackSettings,
    BatchNormMode,
    cross_entropy_attack,
    hand_written_kl,
)


@dataclass
class Settings(AttackSettings):
    """MTARD, released code, CIFAR-10: start noise 0.001 * N(0, 1), unclamped; eval-mode attack."""

    attack_batch_norm: BatchNormMode = "eval"
    clamp_start: bool = False
    attack_reduction: Literal["sum", "mean"] = "mean"
    """Of the CE inside the attack; the sign makes it irrelevant."""
    scale: float = 1.0
    """Of both terms: 1 on CIFAR-10, 10 on CIFAR-100."""
    initial_nat_weight: float = 0.5
    """Weight of the natural teacher before the first step."""
    eta: float = 0.025
    """Rate of the update of the weights, before any of its milestones."""
    eta_milestones: tuple[int, ...] = (215, 260, 285)
    """0-based epochs from which on eta is multiplied by 0.1 once more.

    "After epochs 215, 260, 285", read as 1-based, the lower rate being first used in the next
    epoch.  An empty tuple keeps eta as it is.
    """


def update_weights(adv_kl: float, nat_kl: float, state: dict[str, float], s: Settings, epoch: int) -> None:
    """MTARD (Zhao et al.), released code, the update of the weights, every step.

    r = L / L0 for each loss, L0 that loss at the very first step;
    w_nat <- w_nat - eta * (w_nat - r_nat / (r_nat + r_adv)); w_adv = 1 - w_nat.
    """
    if "initial_adv_kl" not in state:
        state["initial_adv_kl"] = adv_kl
        state["initial_nat_kl"] = nat_kl
        state["nat_weight"] = s.initial_nat_weight
        state["adv_weight"] = 1.0 - s.initial_nat_weight

    eta = s.eta
    for milestone in s.eta_milestones:
        if epoch >= milestone:
            eta = eta * 0.1

    r_adv = adv_kl / state["initial_adv_kl"]
    r_nat = nat_kl / state["initial_nat_kl"]
    state["nat_weight"] = state["nat_weight"] - eta * (state["nat_weight"] - r_nat / (r_nat + r_adv))
    state["adv_weight"] = 1.0 - state["nat_weight"]


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
    """MTARD (Zhao et al., ECCV 2022), released code, one training step (attack and outer step).

    1. Attack: maximise CE(S(x'), y), student in eval mode.
    2. Student forward on x', train mode.
    3. Student forward on clean x, train mode.
    4. Adversarial teacher on x', natural teacher on clean x, eval mode, no grad.
    5. KL(p_Tadv(x') || p_S(x')) and KL(p_Tnat(x) || p_S(x)), both written by hand with the
       offset 1e-5 and averaged over all entries.
    6. Update of the weights from these losses as plain numbers.
    7. w_adv * KL_adv + w_nat * KL_nat with the updated weights; backward; step.

    ``state`` is kept by the caller and holds "initial_adv_kl", "initial_nat_kl", "adv_weight"
    and "nat_weight"; an empty one makes this the very first step.

    Returned: "loss"; "adv_kl" and "nat_kl" with the scale but without their weights;
    "adv_weight" and "nat_weight" as they weight this loss.
    """
    student = networks["student"]
    teacher = networks["teacher"].eval()
    natural_teacher = networks["natural_teacher"].eval()
    if state is None:
        state = {}

    # 1. The attack.
    x_adv = cross_entropy_attack(student, x, y, noise["adversarial"], s, s.attack_reduction)
    student.train()

    # 2. Student forward on x'.
    z_adv = student(x_adv)

    # 3. Student forward on clean x.
    z_clean = student(x)

    # 4. Teacher forwards.
    with torch.no_grad():
        z_teacher = teacher(x_adv)
        z_natural_teacher = natural_teacher(x)

    # 5. The two losses.
    adv_kl = hand_written_kl(z_adv, z_teacher, s.scale)
    nat_kl = hand_written_kl(z_clean, z_natural_teacher, s.scale)

    # 6. The weights.
    update_weights(adv_kl.item(), nat_kl.item(), state, s, epoch)

    # 7. The loss, backward and step.
    loss = state["adv_weight"] * adv_kl + state["nat_weight"] * nat_kl
    optimizers["student"].zero_grad()
    loss.backward()
    optimizers["student"].step()

    return {
        "loss": loss.item(),
        "adv_kl": adv_kl.item(),
        "nat_kl": nat_kl.item(),
        "adv_weight": state["adv_weight"],
        "nat_weight": state["nat_weight"],
    }
