"""Attacks as compiled regions: of a victim in eval mode, and of a network that is attacked in train mode."""

from collections.abc import Callable, Mapping

import torch
from torch import Tensor, nn

from fastpeer.kernels.choice import torch_kernels
from fastpeer.victims.autograd import AutogradVictim
from fastpeer.victims.chain import Chain, ChainVictim
from fastpeer.victims.convolution import PlainConvolutions
from fastpeer.victims.interface import Compile
from fastpeer.victims.moving_target import MovingTargetVictim, to_input_dtype

EagerVictim = AutogradVictim | ChainVictim


class CompiledVictim:
    """A victim whose logits and input gradient are compiled.

    Args:
        victim: runs where the compiled code cannot be used.
        name: of the network, for the log.
        compiler: compiles both functions.
    """

    def __init__(self, victim: EagerVictim | MovingTargetVictim, name: str, compiler: Compile) -> None:
        self.victim = victim
        self.input_dtype: torch.dtype | None = victim.input_dtype
        self.scale = victim.scale
        self._num_classes = 0
        self._logits = compiler(_functional_logits(victim), f"the {name} in eval mode", victim.logits)
        self._gradient = compiler(
            _functional_gradient(victim), f"the attack on the {name}", victim.input_gradient
        )

    def refresh(self) -> None:
        """Refresh the victim; the compiled code reads its folded weights from the same memory."""
        self.victim.refresh()

    # torch.compile guards on the grad mode, in which training and selection differ: without no_grad here,
    # both functions would be compiled once for each.
    @torch.no_grad()
    def logits(self, images: Tensor) -> Tensor:
        """Map images (B, 3, H, W) to logits (B, C)."""
        return self._logits(images)

    @torch.no_grad()
    def input_gradient(self, images: Tensor, target: Tensor) -> Tensor:
        """Return the scaled gradient at the images, (B, 3, H, W), for probabilities (B, C) or labels (B,)."""
        return self._gradient(images, self._probabilities(images, target))

    def _probabilities(self, images: Tensor, target: Tensor) -> Tensor:
        """Turn labels into one-hot probabilities: training compiled the attack for probabilities."""
        if target.is_floating_point() or isinstance(self.victim, MovingTargetVictim):
            return target
        if not self._num_classes:
            self._num_classes = self.victim.logits(images[:1]).shape[1]
        wide = torch.promote_types(images.dtype, torch.float32)
        return nn.functional.one_hot(target, self._num_classes).to(wide)


class CompiledTrainVictim:
    """A network attacked in train mode, whose input gradient is compiled.

    Forward, gradient and the moves of BatchNorm's statistics are one region, without a gradient at a weight.

    Args:
        network: in train mode.
        victim: of this network; runs where the compiled code cannot be used.
        name: of the network, for the log.
        compiler: compiles the gradient.
    """

    input_dtype: torch.dtype | None = None

    def __init__(self, network: nn.Module, victim: AutogradVictim, name: str, compiler: Compile) -> None:
        self.victim = victim
        self.scale = victim.scale
        self._gradient = compiler(
            _train_gradient(network, victim), f"the attack on the {name} in train mode", victim.input_gradient
        )

    def refresh(self) -> None:
        """Do nothing: the network reads its own weights in each pass."""

    def logits(self, images: Tensor) -> Tensor:
        """Map images (B, 3, H, W) to logits (B, C), uncompiled; this moves the running statistics too."""
        return self.victim.logits(images)

    @torch.no_grad()
    def input_gradient(self, images: Tensor, target: Tensor) -> Tensor:
        """Return the scaled gradient at the images, (B, 3, H, W), for probabilities (B, C) or labels (B,)."""
        return self._gradient(images, target)


def _functional_logits(victim: EagerVictim | MovingTargetVictim) -> Callable[[Tensor], Tensor]:
    return _with_plain_operators(victim).logits if isinstance(victim, ChainVictim) else victim.logits


def _functional_gradient(victim: EagerVictim | MovingTargetVictim) -> Callable[[Tensor, Tensor], Tensor]:
    """Return the input gradient in the form that Inductor compiles best.

    torch.func.grad differentiates with respect to the images alone: no weight gradient is compiled.
    """
    if isinstance(victim, MovingTargetVictim):
        return _functional_moving_target_gradient(victim)
    if isinstance(victim, ChainVictim):
        return _with_plain_operators(victim).input_gradient

    def loss(images: Tensor, target: Tensor) -> Tensor:
        return _loss(_wide_logits(victim, images), target, victim.scale)

    return torch.func.grad(loss)


def _train_gradient(network: nn.Module, victim: AutogradVictim) -> Callable[[Tensor, Tensor], Tensor]:
    """Return the input gradient of a network in train mode, which moves the network's buffers.

    torch.func.grad refuses to change tensors from outside, so the forward moves copies of the buffers.
    """

    def loss(
        images: Tensor, target: Tensor, buffers: Mapping[str, Tensor]
    ) -> tuple[Tensor, dict[str, Tensor]]:
        moved = {name: buffer.clone() for name, buffer in buffers.items()}
        with victim.context():
            logits = torch.func.functional_call(network, moved, (images,))
        return _loss(_at_least_float32(logits), target, victim.scale), moved

    def gradient(images: Tensor, target: Tensor) -> Tensor:
        buffers = dict(network.named_buffers())
        found: Tensor
        found, moved = torch.func.grad(loss, has_aux=True)(images, target, buffers)
        for name, buffer in buffers.items():
            buffer.copy_(moved[name])
        return found

    return gradient


def _functional_moving_target_gradient(victim: MovingTargetVictim) -> Callable[[Tensor, Tensor], Tensor]:
    student, teacher = victim.student, victim.teacher
    if isinstance(student, ChainVictim) and isinstance(teacher, ChainVictim):
        student, teacher = _with_plain_operators(student), _with_plain_operators(teacher)
        return MovingTargetVictim(student, teacher, torch_kernels()).input_gradient

    def loss(images: Tensor, target: Tensor) -> Tensor:
        log_student, log_teacher = (
            torch.log_softmax(_wide_logits(network, images), dim=1) for network in (student, teacher)
        )
        return victim.scale * (log_teacher.exp() * (log_teacher - log_student)).sum()

    return torch.func.grad(loss)


def _with_plain_operators(victim: ChainVictim) -> ChainVictim:
    """Return the same chain in PyTorch's operators alone, which Inductor fuses with one another."""
    chain = Chain(victim.folded.module, PlainConvolutions())
    return ChainVictim(victim.folded, chain, torch_kernels(), victim.scale)


def _wide_logits(victim: EagerVictim, images: Tensor) -> Tensor:
    """Compute logits (B, C), at least float32, in a way that torch.func can differentiate."""
    images = to_input_dtype(victim, images)
    if isinstance(victim, ChainVictim):
        with torch.autocast(images.device.type, enabled=False):
            logits: Tensor = victim.folded.module(images)
    else:
        with victim.context():
            logits = victim.network(images)
    return _at_least_float32(logits)


def _at_least_float32(logits: Tensor) -> Tensor:
    return logits.to(torch.promote_types(logits.dtype, torch.float32))


def _loss(logits: Tensor, target: Tensor, scale: float) -> Tensor:
    """Return the scaled sum of cross-entropies, with probabilities (B, C) or labels (B,)."""
    if not target.is_floating_point():
        return scale * nn.functional.cross_entropy(logits, target, reduction="sum")
    return -scale * (target * torch.log_softmax(logits, dim=1)).sum()
