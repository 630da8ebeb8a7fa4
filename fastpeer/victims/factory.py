"""Chooses how a network is attacked: folded or unfolded, as a chain or through autograd, compiled or not."""

import logging
from collections.abc import Iterable
from dataclasses import astuple, dataclass, field, replace

import torch
from torch import nn

from fastpeer.kernels.choice import Kernels
from fastpeer.victims.autograd import AutogradVictim, FoldedVictim
from fastpeer.victims.chain import Chain, ChainVictim, NotAChain
from fastpeer.victims.compiled import CompiledTrainVictim, CompiledVictim, EagerVictim
from fastpeer.victims.convolution import (
    Convolutions,
    CudnnConvolutions,
    OwnConvolutions,
    PlainConvolutions,
)
from fastpeer.victims.first_layer import FirstLayerConvolutions
from fastpeer.victims.folding import FoldedNetwork, NotFoldable
from fastpeer.victims.interface import Compile, Context, Victim
from fastpeer.victims.moving_target import MovingTargetVictim
from fastpeer.victims.onednn import OnednnConvolutions, onednn_supports

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
        gradient_scale: factor of the gradients in float16; other dtypes need none.
    """

    dtype: torch.dtype
    fold: bool
    chain: bool
    compiler: Compile | None
    kernels: Kernels
    context: Context
    own: OwnKernels = OwnKernels()
    gradient_scale: float = 1024.0
    _victims: dict[nn.Module, "EagerVictim | CompiledVictim"] = field(
        default_factory=dict, init=False, repr=False, compare=False
    )
    _train_victims: dict[nn.Module, "AutogradVictim | CompiledTrainVictim"] = field(
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

    def in_train_mode(self, network: nn.Module, name: str) -> AutogradVictim | CompiledTrainVictim:
        """Return the victim of a network in train mode, made at the first call for it.

        It is not folded: each pass normalises by its batch, and moves the running statistics.
        """
        if network not in self._train_victims:
            victim = self._unfolded(network)
            self._train_victims[network] = (
                victim if self.compiler is None else CompiledTrainVictim(network, victim, name, self.compiler)
            )
        return self._train_victims[network]

    def moving_target(self, student: nn.Module, teacher: nn.Module, name: str, unfolded: bool) -> Victim:
        """Return the victim of an attack that differentiates student and teacher, see `MovingTargetVictim`.

        Args:
            student: attacked; in train mode only if `unfolded`.
            teacher: in eval mode.
            name: the student's, for the log.
            unfolded: neither fold the student nor compile the attack.
        """
        attacked = self._unfolded(student) if unfolded else _uncompiled(self.victim(student, name))
        victim = MovingTargetVictim(attacked, _uncompiled(self.victim(teacher, "teacher")), self.kernels)
        compiler = self._compiler_for(attacked)
        return victim if unfolded or compiler is None else CompiledVictim(victim, name, compiler)

    def _compiler_for(self, victim: EagerVictim) -> Compile | None:
        """Return what compiles a victim: nothing, if it is a chain of our own kernels."""
        return None if self.own and isinstance(victim, ChainVictim) else self.compiler

    def _unfolded(self, network: nn.Module) -> AutogradVictim:
        return AutogradVictim(network, self.kernels, self._scale, self.context)

    def _eager(self, network: nn.Module, name: str) -> EagerVictim:
        folded = self._folded(network, name)
        if folded is None:
            return self._unfolded(network)
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
        """Factor of the gradients: small ones vanish in float16, and a step does not depend on their size."""
        return self.gradient_scale if self.dtype == torch.float16 else 1.0


def choose_convolutions(
    device: torch.device, dtype: torch.dtype, kernels: Kernels, own: OwnKernels = OwnKernels()
) -> Convolutions:
    """Return the fastest way to run an uncompiled chain's convolutions on a device in a dtype.

    Args:
        device: runs them.
        dtype: of all but the first layer.
        kernels: those that may be used.
        own: which layers kernels of our own run.
    """
    if own.stem:
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


def _uncompiled(victim: EagerVictim | CompiledVictim) -> EagerVictim:
    """Return the victim that a compiled one wraps."""
    if not isinstance(victim, CompiledVictim):
        return victim
    assert not isinstance(victim.victim, MovingTargetVictim)  # the factory does not store those
    return victim.victim
