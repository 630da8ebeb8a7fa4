"""Chooses how a network is attacked: folded or unfolded, as a chain or through autograd, compiled or not."""

import logging
from collections.abc import Callable, Iterable
from dataclasses import astuple, dataclass, field, replace

import torch
from torch import Tensor, nn

from fastpeer.kernels.choice import Kernels, torch_kernels
from fastpeer.victims.autograd import AutogradVictim, FoldedVictim
from fastpeer.victims.chain import Chain, ChainVictim, NotAChain
from fastpeer.victims.convolution import (
    Convolutions,
    CudnnConvolutions,
    OwnConvolutions,
    PlainConvolutions,
)
from fastpeer.victims.first_layer import FirstLayerConvolutions
from fastpeer.victims.folding import FoldedNetwork, NotFoldable
from fastpeer.victims.interface import Compile, Context, Victim
from fastpeer.victims.moving_target import MovingTargetVictim, to_input_dtype
from fastpeer.victims.onednn import OnednnConvolutions, onednn_supports

EagerVictim = AutogradVictim | ChainVictim
log = logging.getLogger(__name__)


@dataclass(frozen=True)
class OwnKernels:
    """Which parts of a chain are run by kernels of our own; `EngineConfig` says what each is."""

    convolutions: bool = False
    other_convolutions: bool = False
    sign_bits: bool = False
    stem: bool = False
    stem_step: bool = False
    head: bool = False

    def __bool__(self) -> bool:
        """Whether there are any: they take the place of compiling."""
        return any(astuple(self))


@dataclass(frozen=True)
class VictimFactory:
    """Makes the victims of a run, one for each network.

    Attributes:
        dtype: of convolutions.
        fold, chain: see `EngineConfig`.
        compiler: compiles logits and input gradients; None: nothing is compiled.
        kernels: gradients at the logits, folding, and convolutions with what surrounds them.
        context: makes the context in which autograd runs a network, such as autocast.
        own: parts of chains that kernels of our own run.
    """

    dtype: torch.dtype
    fold: bool
    chain: bool
    compiler: Compile | None
    kernels: Kernels
    context: Context
    own: OwnKernels = OwnKernels()
    _victims: dict[nn.Module, "EagerVictim | CompiledVictim"] = field(
        default_factory=dict, init=False, repr=False, compare=False
    )
    _reasons: dict[nn.Module, str] = field(default_factory=dict, init=False, repr=False, compare=False)

    def victim(self, network: nn.Module, name: str) -> "EagerVictim | CompiledVictim":
        """Return the victim of a network in eval mode, made at the first call for it.

        Folding and the chain are used as far as the network allows; the log says where it does not.

        Args:
            network: its tensors may change in place later, which `refresh` of the victim takes into account.
            name: for the log.
        """
        if network not in self._victims:
            victim = self._eager(network, name)
            compiler = self._compiler_for(victim)
            self._victims[network] = victim if compiler is None else CompiledVictim(victim, name, compiler)
        return self._victims[network]

    def describe(self, network: nn.Module) -> str:
        """Describe the victim that was made of a network: what is folded, and whether it is a chain."""
        victim = _uncompiled(self._victims[network])
        reason = self._reasons.get(network, "")
        if isinstance(victim, (FoldedVictim, ChainVictim)):
            folded = f"folded {victim.folded.num_folded} of {victim.folded.num_norms} BatchNorms"
            return f"{folded}, a chain" if isinstance(victim, ChainVictim) else f"{folded}, no chain{reason}"
        return f"unfolded, no chain{reason}"

    def uses(self, part: str, networks: Iterable[nn.Module]) -> bool:
        """Tell whether the victim of any of these networks is folded, or a chain ("fold", "chain")."""
        kinds = {"fold": (FoldedVictim, ChainVictim), "chain": (ChainVictim,)}[part]
        return any(isinstance(_uncompiled(self._victims[network]), kinds) for network in networks)

    def unfolded(self, network: nn.Module) -> AutogradVictim:
        """Return the victim of a network in its present mode, neither folded nor compiled.

        An attack in train mode needs this: each pass updates the running statistics.
        """
        return AutogradVictim(network, self.kernels, self._scale, self.context)

    def moving_target(self, student: nn.Module, teacher: nn.Module, name: str, unfolded: bool) -> Victim:
        """Return the victim of an attack that differentiates student and teacher, see `MovingTargetVictim`.

        Args:
            student: attacked; in train mode only if `unfolded`.
            teacher: in eval mode.
            name: the student's, for the log.
            unfolded: neither fold the student nor compile the attack.
        """
        attacked = self.unfolded(student) if unfolded else _uncompiled(self.victim(student, name))
        victim = MovingTargetVictim(attacked, _uncompiled(self.victim(teacher, "teacher")), self.kernels)
        compiler = self._compiler_for(attacked)
        return victim if unfolded or compiler is None else CompiledVictim(victim, name, compiler)

    def _compiler_for(self, victim: EagerVictim) -> Compile | None:
        """Return what compiles a victim: nothing, if it is a chain of our own kernels."""
        return None if self.own and isinstance(victim, ChainVictim) else self.compiler

    def _eager(self, network: nn.Module, name: str) -> EagerVictim:
        folded = self._folded(network, name)
        if folded is None:
            return AutogradVictim(network, self.kernels, self._scale, self.context)
        return self._chain(folded, network, name) or FoldedVictim(
            folded, self.kernels, self._scale, self.context
        )

    def _folded(self, network: nn.Module, name: str) -> FoldedNetwork | None:
        if not self.fold:
            return None
        try:
            return FoldedNetwork(network, self.dtype, self.kernels.fold)
        except NotFoldable as reason:
            log.info("engine.fold: the %s is run unfolded: %s", name, reason)
            self._reasons[network] = f": {reason}"
            return None

    def _chain(self, folded: FoldedNetwork, network: nn.Module, name: str) -> ChainVictim | None:
        if not self.chain:
            return None
        device = next(folded.module.buffers()).device
        try:
            convolutions = choose_convolutions(device, self.dtype, self.kernels, self.own)
            chain = Chain(folded.module, convolutions)
        except NotAChain as reason:
            log.info("engine.chain: the %s is run through autograd: %s", name, reason)
            self._reasons[network] = f": {reason}"
            return None
        return ChainVictim(folded, chain, self.kernels, self._scale, self.own.head)

    @property
    def _scale(self) -> float:
        """Factor of the gradients: float16's smallest ones would vanish, and PGD uses the sign alone."""
        return 1024.0 if self.dtype == torch.float16 else 1.0


def choose_convolutions(
    device: torch.device, dtype: torch.dtype, kernels: Kernels, own: OwnKernels = OwnKernels()
) -> Convolutions:
    """Return the fastest way to run an uncompiled chain's convolutions on a device in a dtype.

    Args:
        device: runs them.
        dtype: of all but the first layer.
        kernels: those that may be used.
        own: which layers kernels of our own run; the first layer, on CUDA alone.
    """
    if own.stem and device.type == "cuda" and dtype != torch.float64:
        others = choose_convolutions(device, dtype, kernels, replace(own, stem=False))
        return FirstLayerConvolutions(others, kernels, own.stem_step)
    if own.convolutions:
        return OwnConvolutions(
            kernels.bias_sum_relu, kernels.convolution, kernels.convolution_input_gradient,
            own.other_convolutions, own.sign_bits,
        )  # fmt: skip
    if device.type == "cuda" and dtype != torch.float64:
        return CudnnConvolutions(kernels.bias_sum_relu)
    if device.type == "cpu" and onednn_supports(dtype):
        return OnednnConvolutions()
    return PlainConvolutions()


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


def _uncompiled(victim: EagerVictim | CompiledVictim) -> EagerVictim:
    """Return the victim that a compiled one wraps."""
    if not isinstance(victim, CompiledVictim):
        return victim
    assert not isinstance(victim.victim, MovingTargetVictim)  # the factory does not store those
    return victim.victim


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
        logits = _wide_logits(victim, images)
        if not target.is_floating_point():
            return victim.scale * nn.functional.cross_entropy(logits, target, reduction="sum")
        return -victim.scale * (target * torch.log_softmax(logits, dim=1)).sum()

    return torch.func.grad(loss)


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
    return logits.to(torch.promote_types(logits.dtype, torch.float32))
