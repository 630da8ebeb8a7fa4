"""What an attack needs of the network it attacks: its logits, and the gradient of the loss at its images."""

from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import ParamSpec, Protocol, TypeVar, runtime_checkable

import torch
from torch import Tensor

Logits = Callable[[Tensor], Tensor]
LogitsGradient = Callable[[Tensor], Tensor]
"""Maps logits (B, C) to the gradient of the attack's loss at them (B, C), times the victim's scale."""
Context = Callable[[], AbstractContextManager[object]]
Arguments = ParamSpec("Arguments")
Result = TypeVar("Result")


class Compile(Protocol):
    """Compiles functions, as `fastpeer.step.compile.Compiler` does."""

    def __call__(
        self,
        function: Callable[Arguments, Result],
        name: str,
        eager: Callable[Arguments, Result] | None = None,
    ) -> Callable[Arguments, Result]:
        """Return a compiled function, which calls `eager` where the compiled code cannot be used."""


class Victim(Protocol):
    """A network under attack, in the mode (eval or train) that it is attacked in."""

    input_dtype: torch.dtype | None
    """What the first layer converts images to; None: it accepts them in their own dtype."""
    scale: float
    """Factor of every gradient, which keeps small ones of a float16 backward pass from vanishing."""

    def refresh(self) -> None:
        """Update whatever is derived from the network's weights and statistics, after they have changed."""

    def logits(self, images: Tensor) -> Tensor:
        """Map images (B, 3, H, W) to logits (B, C), without a gradient."""

    def input_gradient(self, images: Tensor, target: Tensor) -> Tensor:
        """Return the gradient of scale · Σ KL(target ‖ softmax(logits)) at the images, (B, 3, H, W).

        The target is (B, C) probabilities, or int64 labels (B,).
        """


@runtime_checkable
class SteppingVictim(Protocol):
    """A victim that may take a step of the attack as a whole, without a gradient in memory."""

    def takes_steps(self, images: Tensor) -> bool:
        """Tell whether it can take a step of images (B, 3, H, W)."""

    def step(
        self, adversarial: Tensor, images: Tensor, target: Tensor, step_size: float, epsilon: float,
        nonfinite_count: Tensor | None,
    ) -> Tensor:  # fmt: skip
        """Return `adversarial` after a step of PGD in the L-infinity ball, see `pgd`."""
