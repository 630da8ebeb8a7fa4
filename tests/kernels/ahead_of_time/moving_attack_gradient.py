"""The gradients at two networks' logits: narrow and wide, each dtype, and two of them at once."""

import torch

from fastpeer.kernels.fused.moving_attack_gradient import moving_attack_gradient


def launch(classes, dtype, target_dtype):
    logits, target_logits = (torch.empty(128, classes, dtype=one) for one in (dtype, target_dtype))
    return lambda: moving_attack_gradient(logits, target_logits, 1024.0)


CASES = {
    "float32": launch(10, torch.float32, torch.float32),
    "bfloat16-teacher": launch(100, torch.float32, torch.bfloat16),
    "float16-student": launch(200, torch.float16, torch.float32),
    "1000-classes": launch(1000, torch.bfloat16, torch.bfloat16),
    "float64": launch(1000, torch.float64, torch.float64),
    "float64-teacher": launch(10, torch.float32, torch.float64),
}
