"""A literal, slow transcription of PeerAiD (Jung et al., CVPR 2024), released code.

It is the oracle of the tests and the step that the benchmarks measure, and so does on the host, too, what
the released loop does there.  What is around the step is in ``peeraid_training``.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from tests.literal.shared import AttackSettings, BatchNormMode, kl_div, pgd

Casting = Callable[[], AbstractContextManager[object]]


@dataclass
class Settings(AttackSettings):
    """PeerAiD, released code, CIFAR-10 (ResNet-18 and WRN-34-10); unclamped start, eval-mode attack.

    The loss weights multiply these terms:

    * ``lambda1``: CE of the student on x'
    * ``lambda2``: temperature^2 * KL(peer on x' || student on x')
    * ``lambda3``: temperature^2 * KL(student on x || student on x')
    * ``gamma1``: CE of the peer on x'
    * ``gamma2``: peer_temperature^2 * KL(student on x' || peer on x')
    """

    attack_batch_norm: BatchNormMode = "eval"
    clamp_start: bool = False
    start_std: float = 0.001
    """Standard deviation of the Gaussian start noise of the attack."""
    temperature: float = 5.0
    """tau, used in both KL terms of the student."""
    peer_temperature: float = 1.0
    """tau_p, used in the KL term of the peer."""
    lambda1: float = 0.0
    lambda2: float = 1.0
    lambda3: float = 1.0
    gamma1: float = 1.0
    gamma2: float = 0.1
    lr: float = 0.1
    """Initial learning rate of both networks."""
    momentum: float = 0.9
    weight_decay: float = 2e-4
    milestones: tuple[int, ...] = (214, 259, 284)
    """0-based epochs from which on the lr of both networks is divided by 10 once more."""
    reduction: Literal["mean", "batchmean"] = "mean"
    """Of the three KL terms of the outer step: "mean" is the released code (the default of
    ``nn.KLDivLoss``) and divides by B*C, "batchmean" is the KL of the paper."""
    peer_target_grad: bool = True
    """Gradient flows into the student's logits that are the target of the peer's KL; True is the released
    code, which does not detach them."""
    clean_target_grad: bool = True
    """Gradient flows into the student's clean logits, a target of its own KL; True is the released code."""

    @classmethod
    def cifar100(cls) -> Settings:
        """PeerAiD, released code, CIFAR-100 (ResNet-18 and WRN-34-10)."""
        return cls(gamma2=1.0)

    @classmethod
    def tiny(cls) -> Settings:
        """PeerAiD, released code, Tiny-ImageNet, ResNet-18.

        WRN-34-10 differs only in the milestones, which are then (49, 79).
        """
        return cls(
            temperature=1.0, lambda1=0.035, lambda2=35.0, lambda3=20.0, gamma2=100.0, milestones=(99, 149)
        )


def attack(
    student: nn.Module,
    peer: nn.Module,
    x: Tensor,
    noise: Tensor | None,
    s: Settings,
    casting: Casting = nullcontext,
) -> Tensor:
    """PeerAiD (CVPR 2024), released code: maximise KL(p_P(x) || p_S(x')), summed.  No labels.

    * The peer on clean x, eval mode, no grad, once for each batch; it returns to train mode before the
      attack.  Its softmax (at temperature 1) is computed anew in each step of the attack.
    * ``noise`` is added to x as it is; None: start_std * N(0, 1), drawn on the host and copied.
    """
    peer.eval()
    with torch.no_grad(), casting():
        z_peer = peer(x)
    peer.train()

    if noise is None:
        noise = s.start_std * torch.randn(x.shape).to(x.device)

    elementwise_kl = nn.KLDivLoss(reduction="none")

    def loss_at(x_adv: Tensor) -> Tensor:
        with casting():
            log_probabilities = torch.log_softmax(student(x_adv), dim=1)
            return elementwise_kl(log_probabilities, torch.softmax(z_peer, dim=1)).sum()

    return pgd(student, x, noise.to(x.dtype), loss_at, s, s.attack_batch_norm, s.clamp_start)


def training_step(
    networks: dict[str, nn.Module],
    optimizers: dict[str, torch.optim.Optimizer],
    x: Tensor,
    y: Tensor,
    s: Settings,
    noise: dict[str, Tensor],
    epoch: int = 0,
    state: dict[str, float] | None = None,
    casting: Casting = nullcontext,
    scaler: torch.amp.GradScaler | None = None,
) -> dict[str, float]:
    """PeerAiD (CVPR 2024), released code, one training step (attack and outer step).

    1. Attack: maximise KL(p_P(x) || p_S(x')), student in eval mode; back to train mode.
    2. Peer forward on x', train mode.
    3. Student forward on x', train mode; used only as the target of the peer's KL.
    4. L_peer = gamma1 * CE + gamma2 * tau_p^2 * KL; the student target is not detached.
    5. The peer's logits are copied and detached.
    6. Student forward on x' again, train mode.
    7. Student forward on clean x, train mode.
    8. L_student = lambda1 * CE + lambda2 * tau^2 * KL (target: the peer's detached logits)
       + lambda3 * tau^2 * KL (target: the clean student, not detached).
    9. One backward of L_peer + L_student; peer optimizer step, then student optimizer step.

    Each of the three student forwards and the one peer forward updates the running statistics of its batch
    norms, in this order.  Four numbers are read back from the device, each where the released loop does so.

    Mixed precision, which the released code does not have: forwards and losses, those of the attack too,
    run under ``casting()``, and ``scaler`` scales the loss.

    Without noise for "adversarial" it is drawn on the host.

    Returned: "peer_loss" and "student_loss" as they are differentiated and "loss", their sum;
    "peer_correct" and "student_correct", how many of x' each network classifies as y.
    """
    student = networks["student"]
    peer = networks["peer"]
    cross_entropy = nn.CrossEntropyLoss()
    scaler = scaler or torch.amp.GradScaler(enabled=False)
    tau = s.temperature
    tau_p = s.peer_temperature

    # 1. The attack.
    optimizers["student"].zero_grad()
    optimizers["peer"].zero_grad()
    x_adv = attack(student, peer, x, noise.get("adversarial"), s, casting)

    with casting():
        # 2. Peer forward on x'.
        z_peer = peer(x_adv)

        # 3. Student forward on x', the target of the peer's KL.
        z_target = student(x_adv)
        if not s.peer_target_grad:
            z_target = z_target.detach()

        # 4. The loss of the peer.
        peer_kl = kl_div(z_peer, z_target, s.reduction, tau_p)
        peer_loss = s.gamma1 * cross_entropy(z_peer, y) + s.gamma2 * (tau_p**2 * peer_kl)
        peer_loss_read = peer_loss.item()
        peer_correct = z_peer.max(1)[1].eq(y).sum().item()

        # 5. The peer's logits as a constant.
        z_peer_fixed = z_peer.clone().detach()

        # 6. Student forward on x' again.
        z_student = student(x_adv)
        student_correct = z_student.max(1)[1].eq(y).sum().item()

        # 7. Student forward on clean x.
        z_clean = student(x)
        if not s.clean_target_grad:
            z_clean = z_clean.detach()

        # 8. The loss of the student.
        student_loss = (
            s.lambda1 * cross_entropy(z_student, y)
            + s.lambda2 * (tau**2 * kl_div(z_student, z_peer_fixed, s.reduction, tau))
            + s.lambda3 * (tau**2 * kl_div(z_student, z_clean, s.reduction, tau))
        )

    # 9. One backward, then the peer's step, then the student's.
    scaler.scale(peer_loss + student_loss).backward()
    scaler.step(optimizers["peer"])
    scaler.step(optimizers["student"])
    scaler.update()

    student_loss_read = student_loss.item()
    return {
        "loss": peer_loss_read + student_loss_read,
        "peer_loss": peer_loss_read,
        "student_loss": student_loss_read,
        "peer_correct": peer_correct,
        "student_correct": student_correct,
    }
