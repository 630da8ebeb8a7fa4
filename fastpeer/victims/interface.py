"""The network under attack: its logits, and the gradient at its images."""

from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import ParamSpec, Protocol, TypeVar

import torch
from torch import Tensor

Logits = Callable[[Tensor], Tensor]
AtLogits = Callable[[Tensor], Tensor]
"""Makes the gradient at the logits, times the victim's scale, out of the logits."""
Context = Callable[[], AbstractContextManager[object]]
Arguments = ParamSpec("Arguments")
Result = TypeVar("Result")


class Compile(Protocol):
    """Compiles functions, as `fastpeer.step.compile.Compiler` does."""

    def __call__(
        self,
        function: Callable[Arguments, Result],
        what: str,
        eager: Callable[Arguments, Result] | None = None,
    ) -> Callable[Arguments, Result]:
        """Return a function, compiled; `eager` runs where it is not."""


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
