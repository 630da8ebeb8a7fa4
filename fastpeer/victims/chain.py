"""A folded network as a list of operations with a hand-written forward and backward, without autograd.

What is left of a residual network after folding is convolution, bias, sum, ReLU, pooling and a linear layer.
The gradient at the images needs few operations then and no weight needs one. Bias, sum and ReLU fuse into the
convolution before them, where autograd would run and store each by itself.
"""

import operator
from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.nn import functional as F

from fastpeer.kernels.choice import Kernels
from fastpeer.models.normalized import InputNormalization
from fastpeer.victims.chain_steps import (
    Add,
    ApplyLinear,
    ApplyRelu,
    Convolve,
    Normalise,
    NormaliseInput,
    Pool,
    Step,
)
from fastpeer.victims.convolution import Convolutions
from fastpeer.victims.folding import EvalBatchNorm, FoldedConv2d, FoldedLinear, FoldedNetwork
from fastpeer.victims.interface import LogitsGradient
from fastpeer.victims.tracing import add_in_place, is_hooked


class NotAChain(Exception):
    """The network has an operation that no step of a chain computes; the message names it."""


class Chain:
    """A folded network's logits, and the gradient at its images, computed step by step.

    Args:
        module: that of a `FoldedNetwork`.
        convolutions: runs the convolutions.

    Raises:
        NotAChain: the network has an operation that no step computes.
    """

    def __init__(self, module: fx.GraphModule, convolutions: Convolutions) -> None:
        self.convolutions = convolutions
        self.steps, self._images, self._logits = _Builder(module, convolutions).build()

    def logits(self, images: Tensor) -> Tensor:
        """Map images (B, 3, H, W) to logits (B, C)."""
        return self.forward(images)[self._logits]

    def forward(self, images: Tensor) -> dict[int, Tensor]:
        """Return every step's result, keyed by its number; `images` (B, 3, H, W) among them."""
        values = {self._images: images}
        for step in self.steps:
            values[step.result] = step.forward(values)
        return values

    def input_gradient(self, images: Tensor, logits_gradient: Callable[[Tensor], Tensor]) -> Tensor:
        """Return the gradient at the images, (B, 3, H, W), for a given gradient at the logits.

        `logits_gradient` maps logits (B, C) to it.
        """
        values = self.forward(images)
        gradients = {self._logits: logits_gradient(values[self._logits])}
        for step in reversed(self.steps):
            step.backward(values, gradients)
            # The steps that remain read earlier values only: free this one, as autograd would.
            del values[step.result]
        return gradients[self._images]


class _Builder:
    """Turns a graph into steps, and fuses residual sums and ReLUs into the step before where that is exact.

    Attributes:
        numbers: number of the value that holds each node's result; several nodes may share one.
    """

    def __init__(self, module: fx.GraphModule, convolutions: Convolutions) -> None:
        self.graph = module.graph
        self.modules = dict(module.named_modules())
        self.convolutions = convolutions
        self.steps: list[Step] = []
        self.numbers: dict[fx.Node, int] = {}

    def build(self) -> tuple[list[Step], int, int]:
        """Return the steps, the number of the images and that of the logits."""
        images = logits = None
        for number, node in enumerate(self.graph.nodes):
            if node.op == "placeholder" and images is None:
                images = self.numbers[node] = number
            elif node.op == "output" and node.args[0] in self.numbers:
                logits = self.numbers[node.args[0]]
            else:
                self._add(number, node)
        if images is None or logits is None or not isinstance(self.steps[-1], ApplyLinear):
            raise NotAChain("it does not lead from one tensor of images to a linear layer's logits")
        return self.steps, images, logits

    def _add(self, number: int, node: fx.Node) -> None:
        operation = _operation(node, self.modules)
        sources = [self.numbers[source] for source in node.all_input_nodes]
        # A chain computes nothing in place: whoever else reads the value would see the old one.
        if _is_in_place(node, self.modules) and self._num_uses(node.all_input_nodes[0]) > 1:
            raise NotAChain(f"{node.format_node()} changes in place what is used elsewhere too")
        if operation is nn.Identity:
            self.numbers[node] = sources[0]
            return
        self.numbers[node] = number
        if operation is nn.ReLU and self._fuse_relu(node, number):
            return
        if operation is operator.add and self._fuse_sum(node, number):
            return
        self.steps.append(self._step(operation, node, sources, number))

    def _step(self, operation: Any, node: fx.Node, sources: list[int], number: int) -> Step:
        layer = self.modules.get(str(node.target))
        if isinstance(layer, FoldedConv2d):
            return Convolve(sources[0], number, layer, self.convolutions)
        if isinstance(layer, EvalBatchNorm):
            return Normalise(sources[0], number, layer)
        if isinstance(layer, InputNormalization):
            return NormaliseInput(sources[0], number, layer)
        if isinstance(layer, FoldedLinear):
            return ApplyLinear(sources[0], number, layer)
        if operation is operator.add:
            # The first and the last, not the second: x + x has a single source.
            return Add(sources[0], number, sources[-1])
        return {nn.ReLU: ApplyRelu, nn.AdaptiveAvgPool2d: Pool}[operation](sources[0], number)

    def _fuse_relu(self, node: fx.Node, number: int) -> bool:
        """Let the step before end in this ReLU, unless something else reads the value before the ReLU."""
        last = self.steps[-1] if self.steps else None
        source = node.all_input_nodes[0]
        if not isinstance(last, (Convolve, Normalise, Add)) or last.relu:
            return False
        if last.result != self.numbers[source] or self._num_uses(source) > 1:
            return False
        last.relu, last.result = True, number
        return True

    def _fuse_sum(self, node: fx.Node, number: int) -> bool:
        """Let the convolution before end in this sum, unless something else reads its result."""
        last = self.steps[-1] if self.steps else None
        # Where it casts, its result and the other summand are of another dtype than it computes in.
        if not isinstance(last, Convolve) or last.relu or last.residual is not None or last.casts:
            return False
        convolved = [source for source in node.all_input_nodes if self.numbers[source] == last.result]
        others = [source for source in node.all_input_nodes if self.numbers[source] != last.result]
        if len(convolved) != 1 or len(others) != 1 or self._num_uses(convolved[0]) > 1:
            return False
        last.residual, last.result = self.numbers[others[0]], number
        return True

    def _num_uses(self, node: fx.Node) -> int:
        """Count the nodes that use a value, also through identities such as dropout in eval mode."""
        aliases = [other for other, number in self.numbers.items() if number == self.numbers[node]]
        identities = sum(1 for alias in aliases for user in alias.users if user in aliases)
        return sum(len(alias.users) for alias in aliases) - identities


def _operation(node: fx.Node, modules: dict[str, nn.Module]) -> Any:
    """Return what a node computes, under one name for all its spellings.

    A module's class, `operator.add`, or nn.Identity for what hands its input through.

    Raises:
        NotAChain: no step computes it.
    """
    layer = modules[str(node.target)] if node.op == "call_module" else None
    if layer is not None and is_hooked(layer):
        raise NotAChain(f"its layer {node.target} has hooks")
    if _does_nothing(node, layer):
        return nn.Identity
    operation = _function_operation(node, modules) if layer is None else _layer_operation(node, layer)
    if operation is None:
        called = getattr(node.target, "__name__", str(node.target)) if layer is None else type(layer).__name__
        raise NotAChain(f"there is no rule for {called} ({node.name.removeprefix('network_')})")
    return operation


def _layer_operation(node: fx.Node, layer: nn.Module) -> Any:
    if isinstance(layer, nn.ReLU):
        return nn.ReLU
    if isinstance(layer, (FoldedConv2d, FoldedLinear, InputNormalization)):
        return type(layer)
    if isinstance(layer, EvalBatchNorm) and isinstance(layer.norm, nn.BatchNorm2d):
        return EvalBatchNorm
    if isinstance(layer, nn.AdaptiveAvgPool2d) and layer.output_size in (1, (1, 1)):
        return _pool(node)
    return None


def _function_operation(node: fx.Node, modules: dict[str, nn.Module]) -> Any:
    if node.target in (F.relu, torch.relu, "relu"):
        return nn.ReLU
    if node.target in (operator.add, torch.add, add_in_place, "add") and not node.kwargs:
        return _sum(node)
    if node.target is F.adaptive_avg_pool2d and node.args[1] in (1, (1, 1)):
        return _pool(node)
    if node.target is torch.flatten and _source_operation(node, modules) is nn.AdaptiveAvgPool2d:
        return nn.Identity
    return None


def _is_in_place(node: fx.Node, modules: dict[str, nn.Module]) -> bool:
    layer = modules[str(node.target)] if node.op == "call_module" else None
    inplace = getattr(layer, "inplace", False) or node.kwargs.get("inplace", False)
    return bool(inplace) or node.target is add_in_place or (node.target is F.relu and len(node.args) > 1)


def _does_nothing(node: fx.Node, layer: nn.Module | None) -> bool:
    """Tell whether an operation returns its input unchanged in eval mode."""
    if node.target is F.dropout:
        return node.kwargs.get("training") is False
    empty = isinstance(layer, nn.Sequential) and not len(layer)
    return empty or isinstance(layer, (nn.Identity, nn.Dropout, nn.Dropout2d))


def _sum(node: fx.Node) -> Any:
    if len(node.args) == 2 and all(isinstance(summand, fx.Node) for summand in node.args):
        return operator.add
    raise NotAChain("it adds something other than two tensors")


def _pool(node: fx.Node) -> Any:
    """Refuse a pooling that is not followed by flattening alone: a chain's pooling returns (B, C)."""
    if all(user.target is torch.flatten for user in node.users):
        return nn.AdaptiveAvgPool2d
    raise NotAChain("its pooling is followed by something other than torch.flatten")


def _source_operation(node: fx.Node, modules: dict[str, nn.Module]) -> Any:
    return _operation(node.all_input_nodes[0], modules)


class ChainVictim:
    """A folded network attacked as a chain, without autograd.

    Args:
        folded: the network.
        chain: made of it.
        kernels: for the gradient at the logits.
        scale: factor of the gradient at the logits.
    """

    def __init__(self, folded: FoldedNetwork, chain: Chain, kernels: Kernels, scale: float) -> None:
        self.folded = folded
        self.chain = chain
        self.kernels = kernels
        self.scale = scale
        self.input_dtype: torch.dtype | None = folded.input_dtype

    def refresh(self) -> None:
        """Fold the weights and statistics that the network has now, and drop packed copies of former ones."""
        self.folded.refresh()
        self.chain.convolutions.invalidate()

    @torch.no_grad()
    def logits(self, images: Tensor) -> Tensor:
        """Map images (B, 3, H, W) to logits (B, C)."""
        with self._without_autocast(images):
            return self.chain.logits(images)

    @torch.no_grad()
    def input_gradient(self, images: Tensor, target: Tensor) -> Tensor:
        """Return the scaled gradient at the images, (B, 3, H, W); the loss itself is not computed.

        The target is (B, C) probabilities, or int64 labels (B,).
        """
        return self.gradient_from(
            images, lambda logits: self.kernels.attack_gradient(logits, target, self.scale)
        )

    @torch.no_grad()
    def gradient_from(self, images: Tensor, logits_gradient: LogitsGradient) -> Tensor:
        """Return the gradient at the images, (B, 3, H, W), for a given gradient at the logits."""
        with self._without_autocast(images):
            return self.chain.input_gradient(images, logits_gradient)

    def _without_autocast(self, images: Tensor) -> AbstractContextManager[object]:
        """Switch autocast off: every layer has its own dtype, and the first must not round the pixels."""
        return torch.autocast(images.device.type, enabled=False)
