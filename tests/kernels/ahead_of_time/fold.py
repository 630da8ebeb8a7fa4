"""Launches of the fold."""

import torch

from fastpeer.kernels.fused.fold import Fold
from tests.kernels.fold_layers import random_layer

CASES = {
    f"{source}-to-{weights}".replace("torch.", ""): Fold(
        [random_layer((64, 64, 3, 3), dtype=source, weights=weights, biases=biases, channels_last=True)]
    )
    for source, weights, biases in [
        (torch.float32, torch.bfloat16, torch.float32),
        (torch.float32, torch.float16, torch.float16),
        (torch.float32, torch.float32, torch.float32),
        (torch.float64, torch.float64, torch.float64),
    ]
}
