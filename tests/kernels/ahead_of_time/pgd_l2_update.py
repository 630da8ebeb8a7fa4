"""The attack's step in the L2 ball: plain, with everything that it can do besides, and in float64."""

import torch

from fastpeer.kernels.fused.pgd_l2_update import pgd_l2_update


def launch(dtype, gradient_dtype, size=32, **options):
    images = torch.empty(8, 3, size, size, dtype=dtype, memory_format=torch.channels_last)
    return lambda: pgd_l2_update(images, images.to(gradient_dtype), images, 0.1, 0.5, **options)


NAN_COUNT = torch.zeros((), dtype=torch.int64)
CASES = {
    "float32": launch(torch.float32, torch.float32),
    "float32-224": launch(torch.float32, torch.float32, 224),
    "bfloat16-network": launch(torch.float32, torch.bfloat16, copy=torch.bfloat16, nonfinite_count=NAN_COUNT),
    "float16-network": launch(torch.float32, torch.float16, copy=torch.float16, nonfinite_count=NAN_COUNT),
    "float64": launch(torch.float64, torch.float64),
}
