"""Chooses how a network is attacked: folded or live, as a chain or through autograd, compiled or not."""

import logging
from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from fastpeer.kernels.choice import Kernels, torch_kernels
from fastpeer.victims.autograd import FoldedVictim, LiveVictim
from fastpeer.victims.chain import Chain, ChainVictim, NotAChain
from fastpeer.victims.convolution import Convolutions, CudnnConvolutions, PlainConvolutions
from fastpeer.victims.folding import FoldedNetwork, NotFoldable
from fastpeer.victims.interface import Compile, Context, Victim
from fastpeer.victims.moving import MovingVictim, seen_by
from fastpeer.victims.onednn import OnednnConvolutions, onednn_takes

Eager = LiveVictim | ChainVictim
log = logging.getLogger(__name__)


@dataclass(frozen=True)
class VictimFactory:
    """How networks are attacked.

    Attributes:
        dtype: of convolutions.
        fold, chain: see `EngineConfig`.
        compiler: compiles their runs; None: nothing is compiled.
        kernels: formulas between the network's runs.
        context: makes the context that a network is run in by autograd, such as autocast.
    """

    dtype: torch.dtype
    fold: bool
    chain: bool
    compiler: Compile | None
    kernels: Kernels
    context: Context
    _victims: dict[nn.Module, "Eager | CompiledVictim"] = field(
        default_factory=dict, init=False, repr=False, compare=False
    )

    def victim(self, network: nn.Module, name: str) -> "Eager | CompiledVictim":
        """Prepare a network once, as far as its layers allow; `name` is for lines about what they do not."""
        if network not in self._victims:
            victim = self._eager(network, name)
            self._victims[network] = (
                victim if self.compiler is None else CompiledVictim(victim, name, self.compiler)
            )
        return self._victims[network]

    def live(self, network: nn.Module) -> LiveVictim:
        """Prepare a network that is attacked as it is, in whatever mode it is in."""
        return LiveVictim(network, self.kernels, self._scale, self.context)

    def moving(self, student: nn.Module, teacher: nn.Module, name: str, live: bool) -> Victim:
        """Prepare a student, `live` for as it is, and a teacher that an attack goes through together."""
        ours = self.live(student) if live else _uncompiled(self.victim(student, name))
        victim = MovingVictim(ours, _uncompiled(self.victim(teacher, "teacher")), self.kernels)
        return victim if live or self.compiler is None else CompiledVictim(victim, name, self.compiler)

    def _eager(self, network: nn.Module, name: str) -> Eager:
        folded = self._folded(network, name)
        if folded is None:
            return LiveVictim(network, self.kernels, self._scale, self.context)
        return self._chain(folded, name) or FoldedVictim(folded, self.kernels, self._scale, self.context)

    def _folded(self, network: nn.Module, name: str) -> FoldedNetwork | None:
        if not self.fold:
            return None
        try:
            return FoldedNetwork(network, self.dtype, self.kernels.fold)
        except NotFoldable as reason:
            log.info("engine.fold: the %s is run unfolded: %s", name, reason)
            return None

    def _chain(self, folded: FoldedNetwork, name: str) -> ChainVictim | None:
        if not self.chain:
            return None
        device = next(folded.module.buffers()).device
        try:
            chain = Chain(folded.module, choose_convolutions(device, self.dtype, self.kernels))
        except NotAChain as reason:
            log.info("engine.chain: the %s is run through autograd: %s", name, reason)
            return None
        return ChainVictim(folded, chain, self.kernels, self._scale)

    @property
    def _scale(self) -> float:
        """Keeps small gradients of a float16 backward pass from vanishing; their sign does not see it."""
        return 1024.0 if self.dtype == torch.float16 else 1.0


def choose_convolutions(device: torch.device, dtype: torch.dtype, kernels: Kernels) -> Convolutions:
    """Return what runs a chain best where it is not compiled."""
    if device.type == "cuda" and dtype != torch.float64:
        return CudnnConvolutions(kernels.bias_sum_relu)
    if device.type == "cpu" and onednn_takes(dtype):
        return OnednnConvolutions()
    return PlainConvolutions()


class CompiledVictim:
    """A victim whose logits and gradient torch.compile runs."""

    def __init__(self, victim: Eager | MovingVictim, name: str, compiler: Compile) -> None:
        self.victim = victim
        self.input_dtype: torch.dtype | None = victim.input_dtype
        self.scale = victim.scale
        self._classes = 0
        self._logits = compiler(_functional_logits(victim), f"the {name} in eval mode", victim.logits)
        self._gradient = compiler(
            _functional_gradient(victim), f"the attack on the {name}", victim.input_gradient
        )

    def refresh(self) -> None:
        """Take up the weights that the network has now."""
        self.victim.refresh()

    # What is compiled is compiled for one grad mode, and the selection calls it under no_grad.
    @torch.no_grad()
    def logits(self, images: Tensor) -> Tensor:
        """Run it forward."""
        return self._logits(images)

    @torch.no_grad()
    def input_gradient(self, images: Tensor, target: Tensor) -> Tensor:
        """Run it forward and back."""
        return self._gradient(images, self._probabilities(images, target))

    def _probabilities(self, images: Tensor, target: Tensor) -> Tensor:
        """Return labels as the probabilities that training compiled the attack for."""
        if target.is_floating_point() or isinstance(self.victim, MovingVictim):
            return target
        if not self._classes:
            self._classes = self.victim.logits(images[:1]).shape[1]
        wide = torch.promote_types(images.dtype, torch.float32)
        return nn.functional.one_hot(target, self._classes).to(wide)


def _uncompiled(victim: Eager | CompiledVictim) -> Eager:
    """Return what a compiled victim was made of."""
    if not isinstance(victim, CompiledVictim):
        return victim
    assert not isinstance(victim.victim, MovingVictim)  # those are made of others, and never kept
    return victim.victim


def _functional_logits(victim: Eager | MovingVictim) -> Callable[[Tensor], Tensor]:
    return _plainly(victim).logits if isinstance(victim, ChainVictim) else victim.logits


def _functional_gradient(victim: Eager | MovingVictim) -> Callable[[Tensor, Tensor], Tensor]:
    """Return the input gradient as Inductor takes it best: torch.func leaves the weights' gradients out."""
    if isinstance(victim, MovingVictim):
        return _functional_moving_gradient(victim)
    if isinstance(victim, ChainVictim):
        return _plainly(victim).input_gradient

    def loss(images: Tensor, target: Tensor) -> Tensor:
        logits = _wide_logits(victim, images)
        if not target.is_floating_point():
            return victim.scale * nn.functional.cross_entropy(logits, target, reduction="sum")
        return -victim.scale * (target * torch.log_softmax(logits, dim=1)).sum()

    return torch.func.grad(loss)


def _functional_moving_gradient(victim: MovingVictim) -> Callable[[Tensor, Tensor], Tensor]:
    student, teacher = victim.student, victim.teacher
    if isinstance(student, ChainVictim) and isinstance(teacher, ChainVictim):
        return MovingVictim(_plainly(student), _plainly(teacher), torch_kernels()).input_gradient

    def loss(images: Tensor, target: Tensor) -> Tensor:
        ours, theirs = (torch.log_softmax(_wide_logits(one, images), dim=1) for one in (student, teacher))
        return victim.scale * (theirs.exp() * (theirs - ours)).sum()

    return torch.func.grad(loss)


def _plainly(victim: ChainVictim) -> ChainVictim:
    """Return the same in PyTorch's operators alone, which Inductor fuses with one another."""
    chain = Chain(victim.folded.module, PlainConvolutions())
    return ChainVictim(victim.folded, chain, torch_kernels(), victim.scale)


def _wide_logits(victim: Eager, images: Tensor) -> Tensor:
    """Run a network as torch.func differentiates it, to logits of at least float32."""
    seen = seen_by(victim, images)
    if isinstance(victim, ChainVictim):
        with torch.autocast(images.device.type, enabled=False):
            logits: Tensor = victim.folded.module(seen)
    else:
        with victim.context():
            logits = victim.network(seen)
    return logits.to(torch.promote_types(logits.dtype, torch.float32))
