"""The network under attack: its logits, and the gradient at its images."""

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Protocol

import torch
from torch import Tensor

from fastpeer.attack.chain import Chain
from fastpeer.attack.folding import FoldedNetwork
from fastpeer.kernels.choice import Kernels

Logits = Callable[[Tensor], Tensor]
AtLogits = Callable[[Tensor], Tensor]
"""Makes the gradient at the logits, times the victim's scale, out of the logits."""
Context = Callable[[], AbstractContextManager[object]]


class Victim(Protocol):
    """What an attack needs of a network in eval mode."""

    input_dtype: torch.dtype | None
    """What the first layer converts images to; None: it takes them as they are."""
    scale: float
    """Factor of every gradient, which keeps small ones of a float16 backward pass from vanishing."""

    def refresh(self) -> None:
        """Take up the weights that the network has now."""

    def logits(self, images: Tensor) -> Tensor:
        """Map images (B, 3, H, W) to logits (B, C), without a gradient."""

    def input_gradient(self, images: Tensor, target: Tensor) -> Tensor:
        """Gradient of scale · Σ KL(target ‖ softmax(logits)) at the images.

        The target is (B, C) probabilities, or int64 labels (B,).
        """


class LiveVictim:
    """A network as it is, through autograd; put it into the mode it is to be attacked in first.

    Args:
        network: logits of images.
        kernels: for the gradient at the logits.
        scale: factor of the gradient at the logits.
        context: makes the context that the network is run in, such as autocast.
    """

    input_dtype: torch.dtype | None = None

    def __init__(
        self,
        network: Logits,
        kernels: Kernels,
        scale: float = 1.0,
        context: Context = nullcontext,
    ) -> None:
        self.network = network
        self.kernels = kernels
        self.scale = scale
        self.context = context

    def refresh(self) -> None:
        """Nothing is kept."""

    @torch.no_grad()
    def logits(self, images: Tensor) -> Tensor:
        """Run it."""
        with self.context():
            return self.network(images)

    def input_gradient(self, images: Tensor, target: Tensor) -> Tensor:
        """Run it forward and back; no loss is computed."""
        return self.gradient_from(
            images, lambda logits: self.kernels.attack_gradient(logits, target, self.scale)
        )

    def gradient_from(self, images: Tensor, at_logits: AtLogits) -> Tensor:
        """Run it forward and back; weights get no gradient."""
        leaf = images.detach().requires_grad_()
        with torch.enable_grad(), self.context():
            logits = self.network(leaf)
        return torch.autograd.grad(logits, leaf, at_logits(logits.detach()))[0]


class FoldedVictim(LiveVictim):
    """A folded network through autograd."""

    def __init__(
        self,
        folded: FoldedNetwork,
        kernels: Kernels,
        scale: float,
        context: Context,
    ) -> None:
        super().__init__(folded.module, kernels, scale, context)
        self.folded = folded
        self.input_dtype = folded.input_dtype

    def refresh(self) -> None:
        """Fold anew."""
        self.folded.refresh()


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
