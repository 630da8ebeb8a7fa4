"""A network attacked through autograd, unfolded or folded."""

from contextlib import nullcontext

import torch
from torch import Tensor

from fastpeer.kernels.choice import Kernels
from fastpeer.victims.folding import FoldedNetwork
from fastpeer.victims.interface import Context, Logits, LogitsGradient
from fastpeer.victims.seeded import seeded


class AutogradVictim:
    """A network attacked through autograd, in whatever mode (eval or train) the caller has put it into.

    Args:
        network: maps images (B, 3, H, W) to logits (B, C).
        kernels: for the gradient at the logits.
        scale: factor of the gradient at the logits.
        context: makes the context that the network runs in, such as autocast.
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
        """Do nothing: the network reads its own weights in each pass."""

    @torch.no_grad()
    def logits(self, images: Tensor) -> Tensor:
        """Map images (B, 3, H, W) to logits (B, C), without a gradient."""
        with self.context():
            return self.network(images)

    def input_gradient(self, images: Tensor, target: Tensor) -> Tensor:
        """Return the scaled gradient at the images, (B, 3, H, W); the loss itself is not computed.

        The target is (B, C) probabilities, or int64 labels (B,).
        """
        return self.gradient_from(
            images, lambda logits: self.kernels.attack_gradient(logits, target, self.scale)
        )

    def gradient_from(self, images: Tensor, logits_gradient: LogitsGradient) -> Tensor:
        """Return the gradient at the images, (B, 3, H, W), for a given gradient at the logits.

        `logits_gradient` maps logits (B, C) to it.
        """
        leaf = images.detach().requires_grad_()
        with torch.enable_grad(), self.context():
            logits = self.network(leaf)
        at_logits = logits_gradient(logits.detach())
        # A network may cut its gradient off, which is warned of (evaluation/hidden_gradients.py).
        if not logits.requires_grad:
            return torch.zeros_like(images)
        # torch.autograd.grad, not backward(): the weights' gradients are neither computed nor accumulated.
        return torch.autograd.grad(seeded([logits], [at_logits]), leaf, materialize_grads=True)[0]


class FoldedVictim(AutogradVictim):
    """A folded network attacked through autograd; `refresh` folds its present weights."""

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
        """Fold the weights and statistics that the network has now."""
        self.folded.refresh()
