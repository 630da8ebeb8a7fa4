"""A folded network as a list of operations that are run forward and back by hand, without autograd.

What is left of a residual network after folding is convolution, bias, sum, ReLU, pooling and a linear layer:
the way back to the images is short, and no weight needs a gradient.
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
    Classify,
    Convolve,
    Normalise,
    NormaliseInput,
    Pool,
    Rectify,
    Step,
)
from fastpeer.victims.convolution import Convolutions
from fastpeer.victims.folding import EvalBatchNorm, FoldedConv2d, FoldedLinear, FoldedNetwork
from fastpeer.victims.interface import AtLogits
from fastpeer.victims.tracing import add_in_place, is_hooked


class NotAChain(Exception):
    """A network with an operation that has no rule here."""


class Chain:
    """A folded network's logits, and the gradient at its images, from explicit steps.

    Args:
        module: of a `FoldedNetwork`.
        convolutions: what runs them.

    Raises:
        NotAChain: the network has an operation that no step stands for.
    """

    def __init__(self, module: fx.GraphModule, convolutions: Convolutions) -> None:
        self.convolutions = convolutions
        self.steps, self._images, self._logits = _Builder(module, convolutions).build()

    def logits(self, images: Tensor) -> Tensor:
        """Map images (B, 3, H, W) to logits (B, C)."""
        return self.forward(images)[self._logits]

    def forward(self, images: Tensor) -> dict[int, Tensor]:
        """Return every step's result by its number."""
        values = {self._images: images}
        for step in self.steps:
            values[step.result] = step.forward(values)
        return values

    def input_gradient(self, images: Tensor, at_logits: Callable[[Tensor], Tensor]) -> Tensor:
        """Return the gradient at the images, from what `at_logits` makes of the logits."""
        values = self.forward(images)
        gradients = {self._logits: at_logits(values[self._logits])}
        for step in reversed(self.steps):
            step.backward(values, gradients)
            # Steps that are still to come read what lies before it only.
            del values[step.result]
        return gradients[self._images]


class _Builder:
    """Turns a graph into steps; a residual sum and a ReLU become part of the step before, where they can."""

    def __init__(self, module: fx.GraphModule, convolutions: Convolutions) -> None:
        self.graph = module.graph
        self.modules = dict(module.named_modules())
        self.convolutions = convolutions
        self.steps: list[Step] = []
        self.numbers: dict[fx.Node, int] = {}

    def build(self) -> tuple[list[Step], int, int]:
        """Return the steps, and the numbers of images and logits."""
        images = logits = None
        for number, node in enumerate(self.graph.nodes):
            if node.op == "placeholder" and images is None:
                images = self.numbers[node] = number
            elif node.op == "output" and node.args[0] in self.numbers:
                logits = self.numbers[node.args[0]]
            else:
                self._add(number, node)
        if images is None or logits is None or not isinstance(self.steps[-1], Classify):
            raise NotAChain("it does not lead from one tensor of images to a linear layer's logits")
        return self.steps, images, logits

    def _add(self, number: int, node: fx.Node) -> None:
        kind = _kind(node, self.modules)
        sources = [self.numbers[one] for one in node.all_input_nodes]
        if _is_in_place(node, self.modules) and self._wanted(node.all_input_nodes[0]) > 1:
            raise NotAChain(f"{node.format_node()} changes in place what is used elsewhere too")
        if kind is nn.Identity:
            self.numbers[node] = sources[0]
            return
        self.numbers[node] = number
        if kind is nn.ReLU and self._extend_by_relu(node, number):
            return
        if kind is operator.add and self._extend_by_sum(node, number):
            return
        self.steps.append(self._step(kind, node, sources, number))

    def _step(self, kind: Any, node: fx.Node, sources: list[int], number: int) -> Step:
        layer = self.modules.get(str(node.target))
        if isinstance(layer, FoldedConv2d):
            return Convolve(sources[0], number, layer, self.convolutions)
        if isinstance(layer, EvalBatchNorm):
            return Normalise(sources[0], number, layer)
        if isinstance(layer, InputNormalization):
            return NormaliseInput(sources[0], number, layer)
        if isinstance(layer, FoldedLinear):
            return Classify(sources[0], number, layer)
        if kind is operator.add:
            return Add(sources[0], number, sources[-1])
        return {nn.ReLU: Rectify, nn.AdaptiveAvgPool2d: Pool}[kind](sources[0], number)

    def _extend_by_relu(self, node: fx.Node, number: int) -> bool:
        """Let the step before end in this ReLU, if nothing else wants what comes before it."""
        last = self.steps[-1] if self.steps else None
        source = node.all_input_nodes[0]
        if not isinstance(last, (Convolve, Normalise, Add)) or last.relu:
            return False
        if last.result != self.numbers[source] or self._wanted(source) > 1:
            return False
        last.relu, last.result = True, number
        return True

    def _extend_by_sum(self, node: fx.Node, number: int) -> bool:
        """Let the convolution before end in this sum, if it is one of the summands and nothing else."""
        last = self.steps[-1] if self.steps else None
        if not isinstance(last, Convolve) or last.relu or last.residual is not None:
            return False
        own = [one for one in node.all_input_nodes if self.numbers[one] == last.result]
        others = [self.numbers[one] for one in node.all_input_nodes if self.numbers[one] != last.result]
        if len(own) != 1 or len(others) != 1 or self._wanted(own[0]) > 1:
            return False
        if not last.casts:
            last.residual, last.result = others[0], number
        return not last.casts

    def _wanted(self, node: fx.Node) -> int:
        """How many nodes use a value, under any of the names that identities gave it."""
        same = [one for one, number in self.numbers.items() if number == self.numbers[node]]
        identities = sum(1 for one in same for user in one.users if user in same)
        return sum(len(one.users) for one in same) - identities


def _kind(node: fx.Node, modules: dict[str, nn.Module]) -> Any:
    """Return the operation in one spelling: a module's class, nn.Identity where nothing happens."""
    layer = modules[str(node.target)] if node.op == "call_module" else None
    if layer is not None and is_hooked(layer):
        raise NotAChain(f"its layer {node.target} has hooks")
    if isinstance(layer, (FoldedConv2d, FoldedLinear, InputNormalization, nn.ReLU)):
        return nn.ReLU if isinstance(layer, nn.ReLU) else type(layer)
    if isinstance(layer, EvalBatchNorm) and isinstance(layer.norm, nn.BatchNorm2d):
        return EvalBatchNorm
    if _does_nothing(node, layer):
        return nn.Identity
    if isinstance(layer, nn.AdaptiveAvgPool2d) and layer.output_size in (1, (1, 1)):
        return _pool(node)
    if node.target in (F.relu, torch.relu, "relu"):
        return nn.ReLU
    if node.target in (operator.add, torch.add, add_in_place, "add") and not node.kwargs:
        return _sum(node)
    if node.target is F.adaptive_avg_pool2d and node.args[1] in (1, (1, 1)):
        return _pool(node)
    if node.target is torch.flatten and _kind_of_source(node, modules) is nn.AdaptiveAvgPool2d:
        return nn.Identity
    layer = modules.get(str(node.target))
    what = type(layer).__name__ if layer is not None else getattr(node.target, "__name__", str(node.target))
    raise NotAChain(f"there is no rule for {what} ({node.name.removeprefix('network_')})")


def _is_in_place(node: fx.Node, modules: dict[str, nn.Module]) -> bool:
    layer = modules[str(node.target)] if node.op == "call_module" else None
    inplace = getattr(layer, "inplace", False) or node.kwargs.get("inplace", False)
    return bool(inplace) or node.target is add_in_place or (node.target is F.relu and len(node.args) > 1)


def _does_nothing(node: fx.Node, layer: nn.Module | None) -> bool:
    """Tell whether an operation hands its input through in eval mode."""
    if node.target is F.dropout:
        return node.kwargs.get("training") is False
    empty = isinstance(layer, nn.Sequential) and not len(layer)
    return empty or isinstance(layer, (nn.Identity, nn.Dropout, nn.Dropout2d))


def _sum(node: fx.Node) -> Any:
    if len(node.args) == 2 and all(isinstance(one, fx.Node) for one in node.args):
        return operator.add
    raise NotAChain("it adds something other than two tensors")


def _pool(node: fx.Node) -> Any:
    """Pooling yields (B, C) here: only where flattening is all that follows."""
    if all(user.target is torch.flatten for user in node.users):
        return nn.AdaptiveAvgPool2d
    raise NotAChain("its pooling is followed by something other than torch.flatten")


def _kind_of_source(node: fx.Node, modules: dict[str, nn.Module]) -> Any:
    return _kind(node.all_input_nodes[0], modules)


class ChainVictim:
    """A folded network as an explicit chain."""

    def __init__(self, folded: FoldedNetwork, chain: Chain, kernels: Kernels, scale: float) -> None:
        self.folded = folded
        self.chain = chain
        self.kernels = kernels
        self.scale = scale
        self.input_dtype: torch.dtype | None = folded.input_dtype

    def refresh(self) -> None:
        """Fold anew."""
        self.folded.refresh()
        self.chain.convolutions.forget()

    @torch.no_grad()
    def logits(self, images: Tensor) -> Tensor:
        """Run it forward."""
        with self._own_precision(images):
            return self.chain.logits(images)

    @torch.no_grad()
    def input_gradient(self, images: Tensor, target: Tensor) -> Tensor:
        """Run it forward and back; no loss is computed."""
        return self.gradient_from(
            images, lambda logits: self.kernels.attack_gradient(logits, target, self.scale)
        )

    @torch.no_grad()
    def gradient_from(self, images: Tensor, at_logits: AtLogits) -> Tensor:
        """Run it forward and back."""
        with self._own_precision(images):
            return self.chain.input_gradient(images, at_logits)

    def _own_precision(self, images: Tensor) -> AbstractContextManager[object]:
        """Switch autocast off: each layer has its dtype, and the first one's is not to be lowered."""
        return torch.autocast(images.device.type, enabled=False)
