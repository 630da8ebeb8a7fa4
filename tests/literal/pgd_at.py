"""A literal, slow transcription of PGD adversarial training (Madry et al.)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from tests.literal.shared import AttackSettings, BatchNormMode, cross_entropy_attack, set_mode


@dataclass
class Settings(AttackSettings):
    """PGD-AT as in the repository of PeerAiD: uniform unclamped start, eval-mode attack."""

    attack_batch_norm: BatchNormMode = "eval"
    clamp_start: bool = False
    attack_reduction: Literal["sum", "mean"] = "mean"
    """Of the CE inside the attack; the sign makes it irrelevant."""
    final_attack_forward: bool = False
    """One forward more on the last iterate inside the attack, its result unused (Rice)."""
    clean_forward: Literal["none", "before_step", "after_step"] = "none"
    """A train-mode forward on clean x whose result is unused.

    "before_step" is after the adversarial one (repository of AdaAD), "after_step" after the
    optimizer step (Rice).
    """

    @classmethod
    def madry(cls) -> Settings:
        """Madry et al., released code: clamped start, CE summed, train-mode attack."""
        return cls(attack_batch_norm="train", clamp_start=True, attack_reduction="sum")

    @classmethod
    def rice(cls) -> Settings:
        """Rice et al. 2020, released code: 11 train-mode attack forwards, clean after the step."""
        return cls(
            attack_batch_norm="train",
            clamp_start=True,
            final_attack_forward=True,
            clean_forward="after_step",
        )

    @classmethod
    def adaad_repository(cls) -> Settings:
        """PGD-AT of the AdaAD repository: clamped (Gaussian) start, an unused clean forward."""
        return cls(clamp_start=True, clean_forward="before_step")


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
    """PGD-AT (Madry et al.), released codes, one training step (attack and outer step).

    1. Attack: maximise CE(S(x'), y), in the mode of the settings.
    2. Student forward on x', train mode.
    3. CE(S(x'), y), mean; backward; step.

    Where the settings ask for it, an unused forward ends the attack and an unused clean one
    precedes or follows the optimizer step.

    Returned: "loss" and "adv_ce", which are the same.
    """
    student = networks["student"]

    # 1. The attack.
    x_adv = cross_entropy_attack(student, x, y, noise["adversarial"], s, s.attack_reduction)
    if s.final_attack_forward:
        set_mode(student, s.attack_batch_norm)
        with torch.no_grad():
            student(x_adv)
    student.train()

    # 2. Student forward on x'.
    z_adv = student(x_adv)
    if s.clean_forward == "before_step":
        student(x)

    # 3. The loss, backward and step.
    adv_ce = nn.CrossEntropyLoss()(z_adv, y)
    loss = adv_ce
    optimizers["student"].zero_grad()
    loss.backward()
    optimizers["student"].step()

    if s.clean_forward == "after_step":
        with torch.no_grad():
            student(x)

    return {"loss": loss.item(), "adv_ce": adv_ce.item()}
