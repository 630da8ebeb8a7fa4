"""BatchNorm at ResNet-18's stages, of one and two parts: all four launches of forward and backward."""

import torch

from fastpeer.kernels.batch_norm import Running
from fastpeer.kernels.fused import batch_norm
from fastpeer.kernels.sign_bits import empty_signs

LAUNCHES = 4
STAGES = {1: (64, 32), 2: (128, 16), 3: (256, 8), 4: (512, 4)}


def launch(stage, parts, dtype=torch.bfloat16, summed=False, relu=True, packs=False):
    channels, size = STAGES[stage]
    shape = (128 * parts, channels, size, size)
    x = torch.empty(shape, dtype=dtype, memory_format=torch.channels_last)
    weight = torch.empty(channels)
    updates = (0,) if parts == 1 else (0, 0, 1)

    def forward_and_backward():
        running = Running(weight, weight.clone(), 0.1, updates)
        residual = x.clone() if summed else None
        signs = empty_signs(shape, x.device) if packs else None
        y, mean, _, rstd = batch_norm.forward(
            x, parts, weight, weight, 1e-5, residual, relu, running, signs=signs
        )
        read = signs if packs else y
        batch_norm.backward(y, x, read, mean, rstd, weight, weight, parts, relu, summed)

    return forward_and_backward


CASES = {f"stage-{stage}-parts-{parts}": launch(stage, parts) for stage in STAGES for parts in (1, 2)}
CASES |= {
    f"stage-{stage}-parts-{parts}-sum": launch(stage, parts, summed=True)
    for stage in (1, 4)
    for parts in (1, 2)
}
CASES |= {f"stage-{stage}-parts-2-sum-signs": launch(stage, 2, summed=True, packs=True) for stage in (1, 4)}
CASES |= {
    "float16": launch(2, 2, torch.float16, relu=False),
    "float32": launch(1, 2, torch.float32, summed=True),
}
