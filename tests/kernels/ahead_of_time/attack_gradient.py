"""The gradient at the logits: labels and probabilities, narrow and wide, in each dtype."""

import torch

from fastpeer.kernels.fused.attack_gradient import attack_gradient


def launch(classes, dtype, target_dtype=None):
    logits = torch.empty(128, classes, dtype=dtype)
    labels = torch.empty(128, dtype=torch.int64)
    target = labels if target_dtype is None else logits.to(target_dtype)
    return lambda: attack_gradient(logits, target, 1024.0)


CASES = {
    "labels": launch(10, torch.float32),
    "probabilities": launch(100, torch.bfloat16, torch.float32),
    "1000-classes": launch(1000, torch.float16, torch.float16),
    "float64": launch(200, torch.float64, torch.float64),
}
