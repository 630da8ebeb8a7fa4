"""Settings of the attack during training."""

import math
from dataclasses import dataclass
from typing import Literal

from fastpeer.config.checks import check_at_least
from fastpeer.config.distances import Norm, PixelDistance, check_distances, format_fraction

AttackPrecision = Literal["run", "bf16", "fp16"]


@dataclass(frozen=True, kw_only=True)
class AttackConfig:
    """The PGD attack during training; what the method's table says holds unless it is overruled here."""

    norm: Norm = "linf"
    """What epsilon bounds: the change of each pixel (linf), or the Euclidean length of an image's whole
    change (l2)."""
    epsilon: PixelDistance = 8 / 255
    """Radius of the ball; usual for l2 is 128/255 or 0.5."""
    step_size: PixelDistance = 2 / 255
    """How far one step moves each pixel, or with l2 the image; usual for l2 is 2.5 epsilon / steps."""
    steps: int = 10
    """Number of steps."""
    start: Literal["method", "gaussian", "uniform", "none"] = "method"
    """The noise the attack starts from; none starts at the image itself."""
    start_std: float = 0.001
    """Standard deviation of Gaussian noise; 0: none."""
    clamp_start: Literal["method", "on", "off"] = "method"
    """Bring the start back to [0, 1] before the first gradient."""
    batchnorm: Literal["method", "eval", "train"] = "method"
    """Mode of the attacked network. In train mode its running statistics move with each step of the attack,
    which cannot be folded then."""
    precision: AttackPrecision = "run"
    """Number format that attacked networks compute in; run is the training's own. fp16 has three bits more
    than bf16, so it is nearer to fp32, but a narrower range."""
    gradient_scale: float = 1024.0
    """Factor of the loss that an attack in fp16 climbs, which keeps small gradients from vanishing. Too large
    a one overflows: the log counts values that are not finite."""

    def __post_init__(self) -> None:
        check_at_least(0, self, "epsilon", "step_size", "steps", "start_std")
        if not 0 < self.gradient_scale < math.inf:
            raise ValueError(f"gradient_scale must be a finite number above 0, got {self.gradient_scale}")
        check_distances(self.norm, epsilon=self.epsilon, step_size=self.step_size)

    @property
    def ball_flags(self) -> list[str]:
        """The words by which `fastpeer eval` attacks in this ball, with steps of this size."""
        radius, step = format_fraction(self.epsilon), format_fraction(self.step_size)
        return ["--norm", self.norm, "--epsilon", radius, "--step-size", step]
