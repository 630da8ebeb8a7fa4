"""A network attacked through autograd: as it is, or folded."""

from contextlib import nullcontext

import torch
from torch import Tensor

from fastpeer.kernels.choice import Kernels
from fastpeer.victims.folding import FoldedNetwork
from fastpeer.victims.interface import AtLogits, Context, Logits


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
