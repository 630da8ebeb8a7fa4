"""The attack's step: plain, with everything that it can do besides, and in float64."""

import torch

from fastpeer.kernels.fused.pgd_update import pgd_update


def launch(dtype, gradient_dtype, **options):
    images = torch.empty(128, 3, 32, 32, dtype=dtype, memory_format=torch.channels_last)
    return lambda: pgd_update(images, images.to(gradient_dtype), images, 0.01, 0.03, **options)


NAN_COUNT = torch.zeros((), dtype=torch.int64)
CASES = {
    "float32": launch(torch.float32, torch.float32),
    "bfloat16-network": launch(torch.float32, torch.bfloat16, copy=torch.bfloat16, nonfinite_count=NAN_COUNT),
    "float16-network": launch(torch.float32, torch.float16, copy=torch.float16, nonfinite_count=NAN_COUNT),
    "float64": launch(torch.float64, torch.float64),
}
