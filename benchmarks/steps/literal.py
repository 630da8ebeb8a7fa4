"""The released PeerAiD step, run literally: what fastpeer's step is measured against.

Statement by statement as the released training loop runs it in eager mode, and with what it makes the
host do: the start noise is drawn on the CPU and copied, the peer's softmax is taken in each attack step,
the student runs on the adversarial images twice, four numbers of each step are read back, and each
network has an SGD of its own. tests/literal/peeraid.py is its oracle for the mathematics.
"""

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from benchmarks.steps.cases import Case
from fastpeer.config import AttackConfig, Config, OptimConfig
from fastpeer.errors import UserError
from fastpeer.methods.peeraid import Loss
from fastpeer.models import build_model

Casting = Callable[[], AbstractContextManager[object]]


@dataclass(frozen=True)
class LiteralResult:
    """What the released loop reads back from each step.

    Attributes:
        peer_loss, student_loss: as differentiated.
        peer_correct, student_correct: of the adversarial images.
    """

    peer_loss: float
    student_loss: float
    peer_correct: int
    student_correct: int


class LiteralStep:
    """Does the released training step on each batch.

    Args:
        config: attack, loss and optimizer.
        student, peer: on the device they are to compute on.
        autocast: run forwards and losses, those of the attack too, under autocast to this dtype.
    """

    def __init__(
        self, config: Config, student: nn.Module, peer: nn.Module, autocast: torch.dtype | None = None
    ) -> None:
        self.config = config
        self.loss = peeraid_loss(config)
        self.student, self.peer = student, peer
        self.device = next(student.parameters()).device
        self.autocast = autocast
        self.student_optimizer = released_sgd(student, config.optim)
        self.peer_optimizer = released_sgd(peer, config.optim)
        self.scaler = torch.amp.GradScaler(self.device.type, enabled=autocast == torch.float16)
        self.criterion = nn.CrossEntropyLoss()

    def __call__(self, images: Tensor, labels: Tensor, noise: Tensor | None = None) -> LiteralResult:
        """Train on images (B, 3, H, W) and labels int64 (B,), both on the device.

        `noise`, (B, 3, H, W), takes the place of the attack's random start.
        """
        self.student_optimizer.zero_grad()
        self.peer_optimizer.zero_grad()
        adversarial = self.attack(images, noise).detach_()
        self.student.train()
        with self._casting():
            peer_logits, peer_loss = self._peer_loss(adversarial, labels)
            peer_read = peer_loss.item(), int(peer_logits.max(1)[1].eq(labels).sum().item())
            student_loss, correct = self._student_loss(images, adversarial, peer_logits, labels)
        self._descend(peer_loss + student_loss)
        return LiteralResult(peer_read[0], student_loss.item(), peer_read[1], correct)

    def set_learning_rate(self, lr: float) -> None:
        """Set it for both networks."""
        for optimizer in (self.student_optimizer, self.peer_optimizer):
            for group in optimizer.param_groups:
                group["lr"] = lr

    def attack(self, images: Tensor, noise: Tensor | None = None) -> Tensor:
        """Make the adversarial images, (B, 3, H, W) like `images`."""
        self.peer.eval()
        with torch.no_grad(), self._casting():
            peer_logits = self.peer(images)
        self.peer.train()
        return literal_attack(self.student, peer_logits, images, self.config.attack, self._casting, noise)

    def _peer_loss(self, adversarial: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        loss = self.loss
        logits = self.peer(adversarial)
        target = self.student(adversarial)
        value = self.criterion(logits, labels) * loss.gamma1
        return logits, value + divergence(logits, target, loss.peer_temperature) * loss.gamma2

    def _student_loss(
        self, images: Tensor, adversarial: Tensor, peer_logits: Tensor, labels: Tensor
    ) -> tuple[Tensor, int]:
        fixed = peer_logits.clone().detach_()
        logits = self.student(adversarial)
        correct = int(logits.max(1)[1].eq(labels).sum().item())
        natural = self.student(images)
        return literal_student_loss(logits, fixed, natural, labels, self.loss), correct

    def _descend(self, loss: Tensor) -> None:
        self.scaler.scale(loss).backward()  # type: ignore[no-untyped-call]
        self.scaler.step(self.peer_optimizer)
        self.scaler.step(self.student_optimizer)
        self.scaler.update()

    def _casting(self) -> AbstractContextManager[object]:
        return nullcontext() if self.autocast is None else torch.autocast(self.device.type, self.autocast)


def peeraid_loss(config: Config) -> Loss:
    """Return the settings of PeerAiD's loss.

    Raises:
        UserError: they are another method's.
    """
    if not isinstance(config.loss, Loss):
        raise UserError(f"the released step is PeerAiD's, not that of {config.method}")
    return config.loss


def literal_attack(
    student: nn.Module,
    peer_logits: Tensor,
    images: Tensor,
    attack: AttackConfig,
    casting: Casting = nullcontext,
    noise: Tensor | None = None,
) -> Tensor:
    """Run the released attack and return its last iterate, (B, 3, H, W)."""
    criterion = nn.KLDivLoss(reduction="none")
    student.eval()
    if noise is None:
        noise = attack.start_std * torch.randn(images.shape).to(images.device)
    adversarial = images.detach() + noise.to(images.dtype)
    for _ in range(attack.steps):
        adversarial.requires_grad_()
        with torch.enable_grad(), casting():
            log_probabilities = F.log_softmax(student(adversarial), dim=1)
            loss = torch.sum(criterion(log_probabilities, F.softmax(peer_logits, dim=1)))
        gradient = torch.autograd.grad(loss, [adversarial])[0]
        adversarial = adversarial.detach() + attack.step_size * torch.sign(gradient.detach())
        adversarial = torch.min(torch.max(adversarial, images - attack.epsilon), images + attack.epsilon)
        adversarial = torch.clamp(adversarial, 0, 1).detach()
    return adversarial


def literal_student_loss(logits: Tensor, peer: Tensor, natural: Tensor, labels: Tensor, loss: Loss) -> Tensor:
    """Evaluate the student's loss as released, a scalar, from three logits (B, C)."""
    return (
        F.cross_entropy(logits, labels) * loss.lambda1
        + divergence(logits, peer, loss.temperature) * loss.lambda2
        + divergence(logits, natural, loss.temperature) * loss.lambda3
    )


def divergence(logits: Tensor, target: Tensor, temperature: float) -> Tensor:
    """τ² · KL(softmax(target/τ) ‖ softmax(logits/τ)), averaged over the classes too; the target learns."""
    kl = nn.KLDivLoss()(F.log_softmax(logits / temperature, dim=1), F.softmax(target / temperature, dim=1))
    scaled: Tensor = kl * (temperature * temperature)
    return scaled


def released_sgd(network: nn.Module, optim: OptimConfig) -> torch.optim.SGD:
    """Return the SGD of the released code."""
    return torch.optim.SGD(
        network.parameters(), lr=optim.lr, momentum=optim.momentum, weight_decay=optim.weight_decay
    )


def literal_networks(
    case: Case, device: torch.device, memory_format: torch.memory_format
) -> dict[str, nn.Module]:
    """Build the trained networks in float32, with weights that are a function of the seed."""
    config = case.config("fp32")
    networks = {}
    for number, name in enumerate(sorted(config.table.trained, reverse=True)):
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(config.seed + number)
            network = build_model(getattr(config.model, name), case.classes, case.sides)
        networks[name] = network.to(device).to(memory_format=memory_format)  # type: ignore[call-overload]
    return networks
