"""An attack whose target moves: the teacher sees the attacked images too, and is differentiated (AdaAD)."""

import torch
from torch import Tensor

from fastpeer.kernels.choice import Kernels
from fastpeer.victims.autograd import AutogradVictim
from fastpeer.victims.chain import ChainVictim


class MovingTargetVictim:
    """The gradient of Σ KL(teacher(x) ‖ student(x)) at x, through both networks.

    Each network runs forward once and backward once per gradient.

    Args:
        student, teacher: in eval mode.
        kernels: for the gradients at the logits.
    """

    def __init__(
        self, student: AutogradVictim | ChainVictim, teacher: AutogradVictim | ChainVictim, kernels: Kernels
    ) -> None:
        self.student = student
        self.teacher = teacher
        self.kernels = kernels
        # Not the student's: the teacher may need the images in a wider dtype than the student does.
        self.input_dtype: torch.dtype | None = None
        self.scale = student.scale

    def refresh(self) -> None:
        """Update what is derived from the student's weights; the teacher is frozen."""
        self.student.refresh()

    def logits(self, images: Tensor) -> Tensor:
        """Map images (B, 3, H, W) to the student's logits (B, C), without a gradient."""
        return self.student.logits(images)

    def input_gradient(self, images: Tensor, target: Tensor) -> Tensor:
        """Return the gradient at the images (B, 3, H, W), in their dtype; `target` is ignored.

        The teacher's logits are the target.
        """
        gradients: list[Tensor] = []

        # The gradient at either network's logits depends on the other's logits. The student therefore runs
        # inside the teacher's callback, between the teacher's forward and its backward.
        def gradient_at_teacher(teacher_logits: Tensor) -> Tensor:
            at_logits: list[Tensor] = []

            def gradient_at_student(logits: Tensor) -> Tensor:
                at_logits.extend(self.kernels.moving_attack_gradient(logits, teacher_logits, self.scale))
                return at_logits[0]

            student_images = to_input_dtype(self.student, images)
            gradients.append(self.student.gradient_from(student_images, gradient_at_student))
            return at_logits[1]

        teacher_images = to_input_dtype(self.teacher, images)
        gradients.append(self.teacher.gradient_from(teacher_images, gradient_at_teacher))
        return gradients[0].to(images.dtype) + gradients[1].to(images.dtype)


def to_input_dtype(victim: AutogradVictim | ChainVictim, images: Tensor) -> Tensor:
    """Convert images to what the network's first layer computes in."""
    return images if victim.input_dtype is None else images.to(victim.input_dtype)
