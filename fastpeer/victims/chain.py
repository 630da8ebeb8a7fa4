"""A folded network as a list of operations with a hand-written forward and backward, without autograd.

What is left of a residual network after folding is convolution, bias, sum, ReLU, pooling and a linear layer.
The gradient at the images needs few operations then and no weight needs one. Bias, sum and ReLU fuse into the
convolution before them, where autograd would run and store each by itself.
"""

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager

import torch
from torch import Tensor, fx

from fastpeer.kernels.attack_head import attack_head, takes
from fastpeer.kernels.choice import Kernels
from fastpeer.victims.chain_steps import (
    Add,
    ApplyLinear,
    ApplyRelu,
    Convolve,
    Mean,
    Normalise,
    Reshape,
    Step,
)
from fastpeer.victims.convolution import Convolutions
from fastpeer.victims.first_layer import FirstLayerConvolutions
from fastpeer.victims.folding import FoldedNetwork
from fastpeer.victims.head import Head, head_of
from fastpeer.victims.interface import LogitsGradient
from fastpeer.victims.spellings import NotAChain as NotAChain
from fastpeer.victims.spellings import Operation, is_in_place, is_shape, operation


class Chain:
    """A folded network's logits, and the gradient at its images, computed step by step.

    Args:
        module: that of a `FoldedNetwork`.
        convolutions: runs the convolutions.

    Attributes:
        images_number, logits_number: of these values.
        head: its last layers, if one kernel can run them.

    Raises:
        NotAChain: the network has an operation that no step computes.
    """

    def __init__(self, module: fx.GraphModule, convolutions: Convolutions) -> None:
        self.convolutions = convolutions
        self.steps, self.images_number, self.logits_number = _Builder(module, convolutions).build()
        self.head = head_of(self.steps)

    def logits(self, images: Tensor) -> Tensor:
        """Map images (B, 3, H, W) to logits (B, C)."""
        return self.forward(images)[self.logits_number]

    def forward(self, images: Tensor, to_return: bool = False) -> dict[int, Tensor]:
        """Return every step's result, keyed by its number; `images` (B, 3, H, W) among them.

        `to_return`: also what only the way back needs.
        """
        return self._forward(self.steps, images, to_return)

    def _forward(self, steps: Sequence[Step], images: Tensor, to_return: bool) -> dict[int, Tensor]:
        values = {self.images_number: images}
        for step in steps:
            values[step.result] = step.forward_to_return(values) if to_return else step.forward(values)
        return values

    def input_gradient(self, images: Tensor, logits_gradient: Callable[[Tensor], Tensor]) -> Tensor:
        """Return the gradient at the images, (B, 3, H, W), for a given gradient at the logits.

        `logits_gradient` maps logits (B, C) to it.
        """
        return self.gradient(images, logits_gradient, None)

    def gradient(
        self, images: Tensor, climb: Callable[[Tensor], Tensor], head: Head | None, to_first: bool = False
    ) -> Tensor:
        """Return the gradient at the images, (B, 3, H, W).

        Args:
            images: (B, 3, H, W).
            climb: returns the gradient at the logits (B, C) that it is given; with a head, at the features
                (B, C, H, W), in front of their ReLU.
            head: the chain's, to be left out.
            to_first: return the gradient at the result of the first step in its place, in front of its ReLU.
        """
        steps, number = (self.steps, self.logits_number) if head is None else (head.before, head.features)
        values = self._forward(steps, images, to_return=True)
        gradients = {number: climb(values[number])}
        for step in reversed(steps[1:] if to_first else steps):
            step.backward(values, gradients)
            # The steps that remain read earlier values only: free this one, as autograd would.
            del values[step.result]
        return steps[0].gradient_before_relu(values, gradients) if to_first else gradients[self.images_number]

    @property
    def first(self) -> Convolve | None:
        """The step that alone reads the images, if it is a convolution."""
        readers = [step for step in self.steps if self.images_number in step.sources]
        first = self.steps[0]
        return first if isinstance(first, Convolve) and readers == [first] else None


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
            elif not is_shape(node):
                self._add(number, node)
        if images is None or logits is None:
            raise NotAChain("it does not lead from one tensor of images to one of logits")
        steps = _leading_to(logits, self.steps)
        if not steps or not isinstance(steps[-1], (ApplyLinear, Mean, Reshape)):
            raise NotAChain("its logits come neither from a linear layer nor from pooling")
        _move_masks(steps)
        return steps, images, logits

    def _add(self, number: int, node: fx.Node) -> None:
        found = operation(node, self.modules)
        inputs = [source for source in node.all_input_nodes if not is_shape(source)]
        # A chain computes nothing in place: whoever else reads the value would see the old one.
        if is_in_place(node, self.modules) and self._num_uses(inputs[0]) > 1:
            raise NotAChain(f"{node.format_node()} changes in place what is used elsewhere too")
        sources = [self.numbers[source] for source in inputs]
        if found.step is None:
            self.numbers[node] = sources[0]
            return
        self.numbers[node] = number
        if found.step is ApplyRelu and self._fuse_relu(node, number):
            return
        if found.step is Add and self._fuse_sum(node, number):
            return
        self.steps.append(self._step(found, sources, number))

    def _step(self, found: Operation, sources: list[int], number: int) -> Step:
        assert found.step is not None
        if found.step is Convolve:
            return Convolve(sources[0], number, found.settings[0], self.convolutions)
        if found.step is Add:
            # The first and the last, not the second: x + x has a single source.
            return Add(sources[0], number, sources[-1])
        return found.step(sources[0], number, *found.settings)

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
        users = [user for alias in aliases for user in alias.users]
        return sum(user not in aliases and not is_shape(user) for user in users)


def _leading_to(logits: int, steps: list[Step]) -> list[Step]:
    """Return the steps that the logits depend on: a network may compute what nothing reads."""
    needed, leading = {logits}, []
    for step in reversed(steps):
        if step.result in needed:
            needed |= step.sources
            leading.append(step)
    return leading[::-1]


def _move_masks(steps: list[Step]) -> None:
    """Let a convolution apply the mask of the ReLU that its source comes from, where one kernel can do both.

    It must be the first step that reads the source: on the way back it is the last to add to the gradient.
    """
    writers = {step.result: step for step in steps}
    read: set[int] = set()
    for step in steps:
        writer = writers.get(step.source)
        if isinstance(step, Convolve) and step.source not in read and writer is not None and writer.relu:
            step.masks = writer.masked = True
            # A convolution in groups is the library's, which reads no signs.
            if isinstance(writer, Convolve) and step.conv.groups == 1:
                writer.keeps_signs = True
        read |= step.sources


class ChainVictim:
    """A folded network attacked as a chain, without autograd.

    Args:
        folded: the network.
        chain: made of it.
        kernels: for the gradient at the logits.
        scale: factor of the gradient at the logits.
        by_head: run the last layers by one kernel, where it takes them.
    """

    def __init__(
        self, folded: FoldedNetwork, chain: Chain, kernels: Kernels, scale: float, by_head: bool = False
    ) -> None:
        self.folded = folded
        self.chain = chain
        self.kernels = kernels
        self.scale = scale
        self.head = chain.head if by_head else None
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
        with self._without_autocast(images):
            return self.chain.gradient(images, self._climb(target), self.head)

    def takes_steps(self, images: Tensor) -> bool:
        """Tell whether `step` can take a step of images (B, 3, H, W)."""
        first, convolutions = self.chain.first, self.chain.convolutions
        if first is None or not isinstance(convolutions, FirstLayerConvolutions):
            return False
        return convolutions.takes_steps(first.conv, images)

    @torch.no_grad()
    def step(
        self, adversarial: Tensor, images: Tensor, target: Tensor, step_size: float, epsilon: float,
        nonfinite_count: Tensor | None,
    ) -> Tensor:  # fmt: skip
        """Return the adversarial images after a step of PGD in L-infinity; see `pgd` for the arguments."""
        first, convolutions = self.chain.first, self.chain.convolutions
        # `takes_steps` said so.
        assert first is not None
        assert isinstance(convolutions, FirstLayerConvolutions)
        with self._without_autocast(images):
            gradient = self.chain.gradient(adversarial, self._climb(target), self.head, to_first=True)
            return convolutions.step(
                first.conv, gradient, adversarial, images, step_size, epsilon, nonfinite_count
            )

    def _climb(self, target: Tensor) -> Callable[[Tensor], Tensor]:
        """Return what turns logits, or the features before a head, into the gradient there."""
        head = self.head
        if head is None:
            return lambda logits: self.kernels.attack_gradient(logits, target, self.scale)

        def climb(features: Tensor) -> Tensor:
            # Where it does not take them, the formula does.
            run = self.kernels.attack_head if takes(features, head.linear.weight) else attack_head
            found: Tensor = run(features, head.linear.weight, head.linear.bias, target, self.scale, head.relu)
            return found.contiguous(memory_format=torch.channels_last)

        return climb

    @torch.no_grad()
    def gradient_from(self, images: Tensor, logits_gradient: LogitsGradient) -> Tensor:
        """Return the gradient at the images, (B, 3, H, W), for a given gradient at the logits."""
        with self._without_autocast(images):
            return self.chain.input_gradient(images, logits_gradient)

    def _without_autocast(self, images: Tensor) -> AbstractContextManager[object]:
        """Switch autocast off: every layer has its own dtype, and the first must not round the pixels."""
        return torch.autocast(images.device.type, enabled=False)
