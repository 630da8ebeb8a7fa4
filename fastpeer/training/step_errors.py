"""What the errors of a training step mean to the user."""

from fastpeer.errors import brief, one_line
from fastpeer.kernels.refusal import KernelRefusal
from fastpeer.step.step import TrainingStep


def user_message(error: Exception, step: TrainingStep) -> str:
    """Return a message for an error of a step that the user can fix; empty for any other error."""
    if isinstance(error, KernelRefusal) or type(error).__module__.partition(".")[0] == "triton":
        return f"{one_line(error)}; run without Triton: --engine.kernels off"
    # PyTorch's words (torch.nn.functional.batch_norm): an image of one pixel left, in a batch of one.
    if "more than 1 value per channel" in str(error):
        return "BatchNorm cannot train on a batch of one: --data.drop-last or another --train.batch-size"
    if step.differentiates_twice and "is not implemented" in str(error):
        method, student = step.config.method, step.config.model.student
        return f"{method} needs second derivatives, which {student} does not support ({brief(error)})"
    return ""
