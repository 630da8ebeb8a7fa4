"""Launches of gathering, cropping and flipping."""

from functools import partial

import torch

from fastpeer.kernels.fused.crop_and_flip import crop_and_flip

DATASET, INDICES = torch.zeros(2, 64, 64, 3, dtype=torch.uint8), torch.zeros(128, dtype=torch.int64)

CASES = {
    f"{name}-{dtype}".replace("torch.", ""): partial(crop_and_flip, DATASET, INDICES, key, dtype)
    for name, key in {"augmented": 2**63, "plain": None}.items()
    for dtype in (torch.float32, torch.float64)
}
