"""A literal, slow transcription of CAT (Liu et al., arXiv 2303.14922), released code.

Collaborative adversarial training: model 1 ("student") learns by TRADES, model 2 ("peer") by
adversarial training, and each from the other's logits on its own adversarial batch.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from tests.literal.shared import (
    AttackSettings,
    BatchNormMode,
    cross_entropy_attack,
    kl_div,
    trades_attack,
)


@dataclass
class Settings(AttackSettings):
    """CAT, released code and script.

    Model 1: start noise 0.001 * N(0, 1), unclamped.  Model 2: uniform start, clamped.
    """

    attack_batch_norm: BatchNormMode = "eval"
    """Of the attack on model 1."""
    clamp_start: bool = False
    """Of the attack on model 1."""
    peer_attack_batch_norm: BatchNormMode = "eval"
    """Of the attack on model 2; "eval" because the released script sets the flag for it."""
    peer_clamp_start: bool = True
    """Of the attack on model 2."""
    beta: float = 6.0
    """Weight of the KL in the loss of model 1."""
    own_weight: float = 1 / 20
    """Weight of L1 + L2."""
    mutual_weight: float = 19 / 20
    """Weight of L3."""
    clean_target_grad: bool = True
    """Gradient flows into the clean logits of model 1, the target of its KL; True is the
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
    """CAT (Liu et al.), released code, one training step (attacks and outer step).

    1. Attack on model 1 as in TRADES: x1'.  Attack on model 2 by CE (mean): x2'.
    2. Model 1 forwards, train mode: clean x, x1'.
    3. Model 2 forwards, train mode: x2', clean x.
    4. Targets, train mode, detached: model 2 on x1', model 1 on x2'.
    5. L1 = CE(M1(x)) + beta * KL(p_M1(x) || p_M1(x1')) (batchmean, target not detached).
    6. L2 = 1/2 * [CE(M2(x2')) + CE(M2(x))] + MSE(z_M2(x2'), z_M2(x)) (neither detached).
    7. L3 = KL(p_M2(x1') || p_M1(x1')) + KL(p_M1(x2') || p_M2(x2')) (batchmean).
    8. One backward of own_weight * (L1 + L2) + mutual_weight * L3; both optimizers step.
    9. Model 1 forward on clean x, train mode, without gradient: only its statistics matter.

    Returned: "loss", "student_loss" (L1), "peer_loss" (L2) and "mutual_loss" (L3), and the
    single terms without weights: "student_clean_ce", "student_self_kl", "peer_adv_ce",
    "peer_clean_ce", "peer_mse", "student_mutual_kl", "peer_mutual_kl".
    """
    model_1 = networks["student"]
    model_2 = networks["peer"]
    cross_entropy = nn.CrossEntropyLoss()

    # 1. The attacks.
    x_adv_1 = trades_attack(model_1, x, noise["adversarial"], s)
    x_adv_2 = cross_entropy_attack(
        model_2, x, y, noise["peer_adversarial"], s, "mean", s.peer_attack_batch_norm, s.peer_clamp_start
    )
    model_1.train()
    model_2.train()

    # 2. Model 1 on clean x and on its own x1'.
    z_1_clean = model_1(x)
    z_1_adv = model_1(x_adv_1)

    # 3. Model 2 on its own x2' and on clean x.
    z_2_adv = model_2(x_adv_2)
    z_2_clean = model_2(x)

    # 4. The targets: each on the adversarial batch of the other.
    z_2_target = model_2(x_adv_1).detach()
    z_1_target = model_1(x_adv_2).detach()

    # 5. The loss of model 1.
    student_clean_ce = cross_entropy(z_1_clean, y)
    own_target = z_1_clean if s.clean_target_grad else z_1_clean.detach()
    student_self_kl = kl_div(z_1_adv, own_target, "batchmean")
    loss_1 = student_clean_ce + s.beta * student_self_kl

    # 6. The loss of model 2.
    peer_adv_ce = cross_entropy(z_2_adv, y)
    peer_clean_ce = cross_entropy(z_2_clean, y)
    peer_mse = ((z_2_adv - z_2_clean) ** 2).mean()
    loss_2 = 0.5 * (peer_adv_ce + peer_clean_ce) + peer_mse

    # 7. The mutual loss.
    student_mutual_kl = kl_div(z_1_adv, z_2_target, "batchmean")
    peer_mutual_kl = kl_div(z_2_adv, z_1_target, "batchmean")
    loss_3 = student_mutual_kl + peer_mutual_kl

    # 8. One backward, both steps.
    loss = s.own_weight * (loss_1 + loss_2) + s.mutual_weight * loss_3
    optimizers["student"].zero_grad()
    optimizers["peer"].zero_grad()
    loss.backward()
    optimizers["student"].step()
    optimizers["peer"].step()

    # 9. Model 1 on clean x after the step, for its statistics.
    with torch.no_grad():
        model_1(x)

    return {
        "loss": loss.item(),
        "student_loss": loss_1.item(),
        "peer_loss": loss_2.item(),
        "mutual_loss": loss_3.item(),
        "student_clean_ce": student_clean_ce.item(),
        "student_self_kl": student_self_kl.item(),
        "peer_adv_ce": peer_adv_ce.item(),
        "peer_clean_ce": peer_clean_ce.item(),
        "peer_mse": peer_mse.item(),
        "student_mutual_kl": student_mutual_kl.item(),
        "peer_mutual_kl": peer_mutual_kl.item(),
    }
