"""A literal, slow transcription of PeerAiD (CVPR 2024), released code.

One training step, the lr rule and the weight averaging, written down statement by
statement in the order in which the released code executes them.  Nothing is fused,
cached or shared, so this file can serve as an oracle for an optimised step.  It contains
no tests and imports nothing but PyTorch and the standard library.

Notation: S is the student, P the peer, x the clean batch in [0, 1], x' the adversarial
batch made against the student, z the logits, tau a temperature.
"""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

BATCH_NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d, nn.SyncBatchNorm)


@dataclass
class LiteralSettings:
    """Settings of PeerAiD (CVPR 2024), released code.

    The loss weights multiply these terms:

    * ``lambda1``: CE of the student on x'
    * ``lambda2``: temperature^2 * KL(peer on x' || student on x')
    * ``lambda3``: temperature^2 * KL(student on x || student on x')
    * ``gamma1``: CE of the peer on x'
    * ``gamma2``: peer_temperature^2 * KL(student on x' || peer on x')
    """

    epsilon: float
    """Radius of the L-infinity ball."""
    step_size: float
    """Size of one signed-gradient step of the attack."""
    steps: int
    """Number of attack steps."""
    start_std: float
    """Standard deviation of the Gaussian start noise of the attack."""
    temperature: float
    """tau, used in both KL terms of the student."""
    peer_temperature: float
    """tau_p, used in the KL term of the peer."""
    lambda1: float
    lambda2: float
    lambda3: float
    gamma1: float
    gamma2: float
    lr: float
    """Initial learning rate of both networks."""
    momentum: float
    weight_decay: float
    milestones: tuple[int, ...]
    """0-based epochs from which on the lr of both networks is divided by 10 once more."""
    reduction: Literal["mean", "batchmean"] = "mean"
    """Of the three KL terms of the outer step.

    "mean" is the released code (the default of ``nn.KLDivLoss``): it divides by B*C and
    so gives the true KL over the number of classes.  "batchmean" divides by B and is the
    KL of the paper.
    """
    peer_target_grad: bool = True
    """Gradient flows into the student logits that are the target of the peer's KL.

    True is the released code, which does not detach them.
    """
    clean_target_grad: bool = True
    """Gradient flows into the clean-student logits that are a target of the student's KL.

    True is the released code, which does not detach them.
    """

    @classmethod
    def cifar10(cls) -> LiteralSettings:
        """PeerAiD (CVPR 2024), released code, CIFAR-10 (ResNet-18 and WRN-34-10)."""
        return cls(
            epsilon=8 / 255,
            step_size=2 / 255,
            steps=10,
            start_std=0.001,
            temperature=5.0,
            peer_temperature=1.0,
            lambda1=0.0,
            lambda2=1.0,
            lambda3=1.0,
            gamma1=1.0,
            gamma2=0.1,
            lr=0.1,
            momentum=0.9,
            weight_decay=2e-4,
            milestones=(214, 259, 284),
        )

    @classmethod
    def cifar100(cls) -> LiteralSettings:
        """PeerAiD (CVPR 2024), released code, CIFAR-100 (ResNet-18 and WRN-34-10)."""
        return cls(
            epsilon=8 / 255,
            step_size=2 / 255,
            steps=10,
            start_std=0.001,
            temperature=5.0,
            peer_temperature=1.0,
            lambda1=0.0,
            lambda2=1.0,
            lambda3=1.0,
            gamma1=1.0,
            gamma2=1.0,
            lr=0.1,
            momentum=0.9,
            weight_decay=2e-4,
            milestones=(214, 259, 284),
        )

    @classmethod
    def tiny(cls) -> LiteralSettings:
        """PeerAiD (CVPR 2024), released code, Tiny-ImageNet, ResNet-18.

        WRN-34-10 differs only in the milestones, which are then (49, 79).
        """
        return cls(
            epsilon=8 / 255,
            step_size=2 / 255,
            steps=10,
            start_std=0.001,
            temperature=1.0,
            peer_temperature=1.0,
            lambda1=0.035,
            lambda2=35.0,
            lambda3=20.0,
            gamma1=1.0,
            gamma2=100.0,
            lr=0.1,
            momentum=0.9,
            weight_decay=2e-4,
            milestones=(99, 149),
        )


def attack(
    student: nn.Module,
    peer: nn.Module,
    x: Tensor,
    s: LiteralSettings,
    noise: Tensor | None = None,
) -> Tensor:
    """PeerAiD (CVPR 2024), released code, inner maximisation.

    * Target: the peer's logits on the clean batch, peer in eval mode, no grad, computed
      once; softmax at temperature 1.  The peer returns to train mode before the attack.
    * Loss: KL(p_P(x) || p_S(x')), element-wise, then summed.  No labels.
    * Student in eval mode; the start is not clamped; every step is sign step, projection
      to the epsilon box, clamp to [0, 1]; the last iterate is used, detached.  The student
      is set back to train mode.

    ``noise``, if given, is added to x as it is (it is already scaled); otherwise the start
    is x + start_std * N(0, 1) from the global generator.
    """
    # The target.
    peer.eval()
    with torch.no_grad():
        target = torch.softmax(peer(x), dim=1)
    peer.train()

    # The start, not clamped.
    student.eval()
    if noise is None:
        noise = s.start_std * torch.randn_like(x)
    x_adv = x.detach() + noise.detach()

    elementwise_kl = nn.KLDivLoss(reduction="none")
    for _ in range(s.steps):
        x_adv.requires_grad_(True)
        with torch.enable_grad():
            log_probabilities = torch.log_softmax(student(x_adv), dim=1)
            loss = elementwise_kl(log_probabilities, target).sum()
        (gradient,) = torch.autograd.grad(loss, [x_adv])

        x_adv = x_adv.detach() + s.step_size * torch.sign(gradient)
        x_adv = torch.min(torch.max(x_adv, x - s.epsilon), x + s.epsilon)
        x_adv = torch.clamp(x_adv, 0.0, 1.0)

    student.train()
    return x_adv.detach()


def outer_kl(input_logits: Tensor, target_logits: Tensor, temperature: float, reduction: str) -> Tensor:
    """PeerAiD (CVPR 2024), released code, the KL of the outer step.

    KL(softmax(target / tau) || softmax(input / tau)) by ``nn.KLDivLoss``: the input in log
    space, the target as plain probabilities.  The tau^2 is not included.  Detaching the
    target is the business of the caller.
    """
    log_probabilities = torch.log_softmax(input_logits / temperature, dim=1)
    probabilities = torch.softmax(target_logits / temperature, dim=1)
    with warnings.catch_warnings():
        # PyTorch warns that "mean" is not the mathematical KL.  It is what was released.
        warnings.simplefilter("ignore", UserWarning)
        return nn.KLDivLoss(reduction=reduction, log_target=False)(log_probabilities, probabilities)


def training_step(
    student: nn.Module,
    peer: nn.Module,
    student_optimizer: torch.optim.Optimizer,
    peer_optimizer: torch.optim.Optimizer,
    x: Tensor,
    y: Tensor,
    s: LiteralSettings,
    noise: Tensor | None = None,
) -> dict[str, float]:
    """PeerAiD (CVPR 2024), released code, one training step (attack and outer step).

    The outer step in its order:

    1. Peer forward on x', train mode.
    2. Student forward on x', train mode; used only as the target of the peer's KL.
    3. L_peer = gamma1 * CE + gamma2 * tau_p^2 * KL; the student target is not detached.
    4. The peer's logits are copied and detached.
    5. Student forward on x' again, train mode.
    6. Student forward on clean x, train mode.
    7. L_student = lambda1 * CE + lambda2 * tau^2 * KL (target: the peer's detached logits)
       + lambda3 * tau^2 * KL (target: the clean student, not detached).
    8. One backward of L_peer + L_student; peer optimizer step, then student optimizer step.

    Each of the three student forwards and the one peer forward updates the running
    statistics of its batch norms, in this order.

    Returned: "loss", "peer_loss" and "student_loss" as they are differentiated, and the
    single terms "peer_ce", "peer_kl", "student_ce", "student_peer_kl", "student_clean_kl"
    without their weights and without tau^2.
    """
    cross_entropy = nn.CrossEntropyLoss()
    tau = s.temperature
    tau_p = s.peer_temperature

    x_adv = attack(student, peer, x, s, noise)
    student.train()
    peer.train()

    # 1. Peer forward on x'.
    z_peer = peer(x_adv)

    # 2. Student forward on x', the target of the peer's KL.
    z_student_1 = student(x_adv)

    # 3. The loss of the peer.
    peer_target = z_student_1 if s.peer_target_grad else z_student_1.detach()
    peer_ce = cross_entropy(z_peer, y)
    peer_kl = outer_kl(z_peer, peer_target, tau_p, s.reduction)
    peer_loss = s.gamma1 * peer_ce + s.gamma2 * tau_p**2 * peer_kl

    # 4. The peer's logits as a constant.
    z_peer_fixed = z_peer.clone().detach()

    # 5. Student forward on x' again.
    z_student_2 = student(x_adv)

    # 6. Student forward on clean x.
    z_student_clean = student(x)

    # 7. The loss of the student.
    clean_target = z_student_clean if s.clean_target_grad else z_student_clean.detach()
    student_ce = cross_entropy(z_student_2, y)
    student_peer_kl = outer_kl(z_student_2, z_peer_fixed, tau, s.reduction)
    student_clean_kl = outer_kl(z_student_2, clean_target, tau, s.reduction)
    student_loss = (
        s.lambda1 * student_ce + s.lambda2 * tau**2 * student_peer_kl + s.lambda3 * tau**2 * student_clean_kl
    )

    # 8. One backward, then the peer's step, then the student's.
    loss = peer_loss + student_loss
    peer_optimizer.zero_grad()
    student_optimizer.zero_grad()
    loss.backward()
    peer_optimizer.step()
    student_optimizer.step()

    return {
        "loss": loss.item(),
        "peer_loss": peer_loss.item(),
        "student_loss": student_loss.item(),
        "peer_ce": peer_ce.item(),
        "peer_kl": peer_kl.item(),
        "student_ce": student_ce.item(),
        "student_peer_kl": student_peer_kl.item(),
        "student_clean_kl": student_clean_kl.item(),
    }


def learning_rate(epoch: int, s: LiteralSettings) -> float:
    """PeerAiD (CVPR 2024), released code, the lr of both networks in a 0-based epoch.

    The test is "epoch >= milestone" and each milestone passed divides by 10: with the
    milestone 214 the 215th epoch already runs at the lower lr.
    """
    lr = s.lr
    for milestone in s.milestones:
        if epoch >= milestone:
            lr = lr / 10
    return lr


def train(
    student: nn.Module,
    peer: nn.Module,
    batches: Sequence[tuple[Tensor, Tensor]],
    s: LiteralSettings,
    epoch_of_step: Callable[[int], int] | Sequence[int] | None = None,
) -> list[dict[str, float]]:
    """PeerAiD (CVPR 2024), released code, training over a given list of (x, y) batches.

    One plain ``torch.optim.SGD`` for each network, with momentum and with weight decay on
    all parameters; the lr of both is set by ``learning_rate`` before each step.

    ``epoch_of_step`` gives the 0-based epoch of each step, as a function of the 0-based
    step or as a sequence; None puts all steps in epoch 0.  The start noise of the attack
    comes from the global generator, one draw for each step.
    """
    student_optimizer = torch.optim.SGD(
        student.parameters(), lr=s.lr, momentum=s.momentum, weight_decay=s.weight_decay
    )
    peer_optimizer = torch.optim.SGD(
        peer.parameters(), lr=s.lr, momentum=s.momentum, weight_decay=s.weight_decay
    )

    losses = []
    for step, (x, y) in enumerate(batches):
        if epoch_of_step is None:
            epoch = 0
        elif callable(epoch_of_step):
            epoch = epoch_of_step(step)
        else:
            epoch = epoch_of_step[step]

        lr = learning_rate(epoch, s)
        for optimizer in (student_optimizer, peer_optimizer):
            for group in optimizer.param_groups:
                group["lr"] = lr

        losses.append(training_step(student, peer, student_optimizer, peer_optimizer, x, y, s))
    return losses


class LiteralSWA:
    """PeerAiD (CVPR 2024), released code, stochastic weight averaging of the student.

    Only the student is averaged, from the epoch of the first milestone on (which is for
    the caller to see to), and the average never influences the training.

    ``model`` is the averaged network, None before the first ``collect``; ``count`` is the
    number of students in it.
    """

    def __init__(self) -> None:
        self.model: nn.Module | None = None
        self.count = 0

    def collect(self, student: nn.Module) -> None:
        """Take the student in, at the end of an epoch.

        PeerAiD (CVPR 2024), released code: equal-weight average of the parameters; the
        first one copies the student; buffers are not averaged (those of the copy stay
        until ``bn_update``).
        """
        if self.model is None:
            self.model = copy.deepcopy(student)
            self.model.zero_grad()
            self.count = 1
            return

        with torch.no_grad():
            for average, parameter in zip(self.model.parameters(), student.parameters(), strict=True):
                average.copy_((average * self.count + parameter) / (self.count + 1))
        self.count += 1

    def bn_update(self, batches: Iterable[tuple[Tensor, Tensor]]) -> None:
        """Recompute the running statistics of the average on clean (x, y) batches.

        PeerAiD (CVPR 2024), released code, each epoch: reset (running mean 0, running
        variance 1), then one train-mode pass with cumulative momentum b / (n + b), b the
        size of the batch and n the number of samples before it; the momenta are restored.
        The model is left in train mode.
        """
        if self.model is None:
            raise RuntimeError("bn_update before the first collect")

        batch_norms = [module for module in self.model.modules() if isinstance(module, BATCH_NORMS)]
        momenta = [module.momentum for module in batch_norms]

        for module in batch_norms:
            if module.running_mean is not None:
                module.running_mean.zero_()
            if module.running_var is not None:
                module.running_var.fill_(1.0)

        self.model.train()
        n = 0
        for x, _ in batches:
            b = x.shape[0]
            for module in batch_norms:
                module.momentum = b / (n + b)
            self.model(x)
            n += b

        for module, momentum in zip(batch_norms, momenta, strict=True):
            module.momentum = momentum
