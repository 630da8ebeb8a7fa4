"""Who is attacked, and how."""

from dataclasses import dataclass
from typing import Literal

from fastpeer.methods.table.forwards import Forward, Network

LABELS: Literal["labels"] = "labels"
Noise = Literal["gaussian", "uniform", "none"]
BatchNormMode = Literal["eval", "train"]


@dataclass(frozen=True)
class Attack:
    """PGD within the L-infinity ball; radius, step size and number of steps are settings of the run.

    It climbs KL(p ‖ V(x̃)), V being the victim. Attacks of released codes differ in p, the start and the
    mode of the victim's BatchNorm.

    Attributes:
        victim: whose examples are made.
        away_from: where p comes from. `LABELS`: one-hot, so that the cross-entropy is climbed. A forward on
            clean images: the softmax of that network's logits in eval mode, fixed during the attack. A
            forward on the attack's own images: p = N(x̃) moves, and the gradient counts what that does.
        start: the noise that the images start from; gaussian has the standard deviation
            `attack.start_std`, uniform fills the ball.
        clamped: the start is brought back to [0, 1] before the first gradient.
        batchnorm: mode of the victim during the attack. In train mode each of its steps moves the running
            statistics.
    """

    victim: Network
    away_from: Forward | Literal["labels"]
    start: Noise
    clamped: bool = False
    batchnorm: BatchNormMode = "eval"

    def moves(self, images: str) -> bool:
        """Whether p moves with the attack's own images, which are called so."""
        return isinstance(self.away_from, Forward) and self.away_from.images == images
