"""What is run."""

from dataclasses import dataclass
from typing import Literal

Network = Literal["student", "peer", "teacher", "natural_teacher"]
"""The student is what is to become robust. A peer learns beside it; teachers are frozen: the robust one,
and the one that was trained without an attack."""


@dataclass(frozen=True)
class Forward:
    """A network on the images of a batch; its logits are what terms speak of.

    A network that is trained runs in train mode, a frozen one in eval mode and without a gradient.

    Attributes:
        network: which.
        images: "clean", or the name of one of the method's attacks.
    """

    network: Network
    images: str
