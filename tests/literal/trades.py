"""A literal, slow transcription of TRADES (Zhang et al. 2019), released code."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from tests.literal.shared import AttackSettings, BatchNormMode, kl_div, trades_attack


@dataclass
class Settings(AttackSettings):
    """TRADES with epsilon 8/255 and step 2/255; start noise 0.001 * N(0, 1), unclamped."""

    attack_batch_norm: BatchNormMode = "eval"
    clamp_start: bool = False
    beta: float = 6.0
    """Weight of the KL."""
    clean_target_grad: bool = True
    """Gradient flows into the clean logits that are the target; True is the released code."""

    @classmethod
    def released(cls) -> Settings:
        """The epsilon and the step of the released code, CIFAR-10."""
        return cls(epsilon=0.031, step_size=0.007)


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
    """TRADES (Zhang et al. 2019), released code, one training step (attack and outer step).

    1. Attack: maximise KL(p_S(x) || p_S(x')), summed, eval mode.
    2. Student forward on clean x, train mode: CE.
    3. Student forward on x', train mode: the input of the KL.
    4. Student forward on clean x again, train mode: the target of the KL, not detached.
    5. CE (mean) + beta / B * KL (summed); backward; step.

    Returned: "loss", and "clean_ce" and "self_kl" without their weights.
    """
    student = networks["student"]
    batch_size = x.shape[0]

    # 1. The attack.
    x_adv = trades_attack(student, x, noise["adversarial"], s)
    student.train()

    # 2. Student forward on clean x.
    z_clean = student(x)
    clean_ce = nn.CrossEntropyLoss()(z_clean, y)

    # 3. Student forward on x'.
    z_adv = student(x_adv)

    # 4. Student forward on clean x again.
    z_target = student(x)
    if not s.clean_target_grad:
        z_target = z_target.detach()

    # 5. The loss, backward and step.
    self_kl = (1.0 / batch_size) * kl_div(z_adv, z_target, "sum")
    loss = clean_ce + s.beta * self_kl
    optimizers["student"].zero_grad()
    loss.backward()
    optimizers["student"].step()

    return {"loss": loss.item(), "clean_ce": clean_ce.item(), "self_kl": self_kl.item()}
