"""An attack whose target moves: the teacher sees the attacked images too, and is differentiated (AdaAD)."""

import torch
from torch import Tensor

from fastpeer.kernels.choice import Kernels
from fastpeer.victims.autograd import LiveVictim
from fastpeer.victims.chain import ChainVictim


class MovingVictim:
    """The gradient of Σ KL(teacher(x) ‖ student(x)) at x, through both networks.

    Each is run forward once and back once.

    Args:
        student, teacher: in eval mode.
        kernels: for the gradients at the logits.
    """

    def __init__(
        self, student: LiveVictim | ChainVictim, teacher: LiveVictim | ChainVictim, kernels: Kernels
    ) -> None:
        self.student = student
        self.teacher = teacher
        self.kernels = kernels
        # One of them may take the images in less than the other needs.
        self.input_dtype: torch.dtype | None = None
        self.scale = student.scale

    def refresh(self) -> None:
        """Take up the weights that the student has now; the teacher's stay."""
        self.student.refresh()

    def logits(self, images: Tensor) -> Tensor:
        """Run the student."""
        return self.student.logits(images)

    def input_gradient(self, images: Tensor, target: Tensor) -> Tensor:
        """Gradient at the images; there is no target but the teacher."""
        gradients: list[Tensor] = []

        def at_teacher(teacher_logits: Tensor) -> Tensor:
            at_logits: list[Tensor] = []

            def at_student(logits: Tensor) -> Tensor:
                at_logits.extend(self.kernels.moving_attack_gradient(logits, teacher_logits, self.scale))
                return at_logits[0]

            gradients.append(self.student.gradient_from(seen_by(self.student, images), at_student))
            return at_logits[1]

        # Either network's gradient needs the other's logits.
        gradients.append(self.teacher.gradient_from(seen_by(self.teacher, images), at_teacher))
        return gradients[0].to(images.dtype) + gradients[1].to(images.dtype)


def seen_by(victim: LiveVictim | ChainVictim, images: Tensor) -> Tensor:
    """Return images as the network's first layer takes them."""
    return images if victim.input_dtype is None else images.to(victim.input_dtype)
