"""What the literal transcriptions have in common: the PGD loop and the KL divergences.

Notation, here and in all modules of this package: S is the student, T a teacher, x the clean
batch in [0, 1], x' the adversarial batch, z the logits, p the softmax of the logits, tau a
temperature, B the batch size, C the number of classes.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

BatchNormMode = Literal["eval", "train"]


@dataclass
class AttackSettings:
    """The numbers of the inner maximisation, CIFAR-10."""

    epsilon: float = 8 / 255
    """Radius of the ball."""
    step_size: float = 2 / 255
    """Size of one step."""
    steps: int = 10
    """Number of steps, each of which is one forward and one backward of the student."""
    attack_batch_norm: BatchNormMode = "eval"
    """Mode of the student inside the attack; in "train" each forward updates its statistics."""
    clamp_start: bool = False
    """The start x + noise is clamped to [0, 1] before the first gradient."""
    norm: Literal["linf", "l2"] = "linf"
    """Of the ball.  The released codes have L-infinity alone; L2 is that of the robustness library
    and of torchattacks' PGDL2."""


def set_mode(network: nn.Module, mode: BatchNormMode) -> None:
    """Put the network into the mode of this name."""
    if mode == "train":
        network.train()
    else:
        network.eval()


def pgd(
    network: nn.Module,
    x: Tensor,
    noise: Tensor,
    loss_at: Callable[[Tensor], Tensor],
    s: AttackSettings,
    batch_norm: BatchNormMode,
    clamp_start: bool,
) -> Tensor:
    """Projected gradient ascent of ``loss_at``, common to all released codes.

    Start x + noise (clamped to [0, 1] if asked); every step is sign step, projection to the
    epsilon box around x, clamp to [0, 1].  In L2 it is a step along the gradient over its norm,
    projection to the epsilon ball around x, clamp to [0, 1].  The last iterate is used, detached.
    The network is in the given mode inside and in train mode afterwards.
    """
    x = x.detach()
    set_mode(network, batch_norm)

    x_adv = x + noise.detach()
    if clamp_start:
        x_adv = torch.clamp(x_adv, 0.0, 1.0)

    for _ in range(s.steps):
        x_adv.requires_grad_(True)
        with torch.enable_grad():
            loss = loss_at(x_adv)
        (gradient,) = torch.autograd.grad(loss, [x_adv])

        x_adv = x_adv.detach()
        if s.norm == "l2":
            x_adv = torch.stack([l2_step(*image, s) for image in zip(x_adv, gradient, x, strict=True)])
        else:
            x_adv = x_adv + s.step_size * torch.sign(gradient)
            x_adv = torch.min(torch.max(x_adv, x - s.epsilon), x + s.epsilon)
        x_adv = torch.clamp(x_adv, 0.0, 1.0)

    network.train()
    return x_adv.detach()


def l2_step(x_adv: Tensor, gradient: Tensor, x: Tensor, s: AttackSettings) -> Tensor:
    """One L2 step of one image (3, H, W) and the projection to the ball, before the clamp."""
    length = math.sqrt((gradient * gradient).sum().item())
    if length > 0:
        x_adv = x_adv + s.step_size * (gradient / length)
    delta = x_adv - x
    distance = math.sqrt((delta * delta).sum().item())
    if distance > s.epsilon:
        delta = delta / distance * s.epsilon
    return x + delta


def cross_entropy_attack(
    network: nn.Module,
    x: Tensor,
    y: Tensor,
    noise: Tensor,
    s: AttackSettings,
    reduction: str,
    batch_norm: BatchNormMode | None = None,
    clamp_start: bool | None = None,
) -> Tensor:
    """Madry et al.: maximise CE(S(x'), y).  One forward of the network in each step."""

    def loss_at(x_adv: Tensor) -> Tensor:
        return nn.CrossEntropyLoss(reduction=reduction)(network(x_adv), y)

    return pgd(
        network,
        x,
        noise,
        loss_at,
        s,
        s.attack_batch_norm if batch_norm is None else batch_norm,
        s.clamp_start if clamp_start is None else clamp_start,
    )


def trades_attack(network: nn.Module, x: Tensor, noise: Tensor, s: AttackSettings) -> Tensor:
    """TRADES (Zhang et al. 2019), released code: maximise KL(p_S(x) || p_S(x')), summed.

    The clean prediction is recomputed in each step (a constant in eval mode).  Assumption:
    within a step x' is forwarded before x, which shows only if the attack were in train mode.
    """

    def loss_at(x_adv: Tensor) -> Tensor:
        z_adv = network(x_adv)
        z_clean = network(x)
        return kl_div(z_adv, z_clean, "sum")

    return pgd(network, x, noise, loss_at, s, s.attack_batch_norm, s.clamp_start)


def kl_div(input_logits: Tensor, target_logits: Tensor, reduction: str, temperature: float = 1.0) -> Tensor:
    """KL(softmax(target / tau) || softmax(input / tau)) by ``nn.KLDivLoss``.

    The input in log space, the target as plain probabilities.  Reduction "mean" divides by
    B*C, "batchmean" by B, "sum" by nothing.  The tau^2 is not included.  Detaching the target
    is the business of the caller.
    """
    log_probabilities = torch.log_softmax(input_logits / temperature, dim=1)
    probabilities = torch.softmax(target_logits / temperature, dim=1)
    with warnings.catch_warnings():
        # PyTorch warns that "mean" is not the mathematical KL.  It is what was released.
        warnings.simplefilter("ignore", UserWarning)
        return nn.KLDivLoss(reduction=reduction, log_target=False)(log_probabilities, probabilities)


def kl_div_of_samples(input_logits: Tensor, target_logits: Tensor, temperature: float = 1.0) -> Tensor:
    """The same KL for each sample: summed over the classes, shape (B,)."""
    return kl_div(input_logits, target_logits, "none", temperature).sum(dim=1)


def hand_written_kl(student_logits: Tensor, teacher_logits: Tensor, scale: float) -> Tensor:
    """RSLAD and MTARD, released code: the KL written by hand.

    scale * mean over all B*C entries of p_T * (log(p_T + 1e-5) - log p_S), the teacher's
    logits detached.  The scale is 1 on CIFAR-10 and 10 on CIFAR-100.
    """
    p_teacher = torch.softmax(teacher_logits.detach(), dim=1)
    log_p_student = torch.log_softmax(student_logits, dim=1)
    entries = p_teacher * (torch.log(p_teacher + 1e-5) - log_p_student)
    return scale * entries.mean()
