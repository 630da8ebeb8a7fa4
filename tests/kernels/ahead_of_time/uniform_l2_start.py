"""Launches of the noise in the L2 ball that an attack starts from."""

from functools import partial

import torch

from fastpeer.kernels.fused.uniform_l2_start import uniform_l2_start

IMAGES, KEY = torch.zeros(8, 3, 32, 32), torch.zeros((), dtype=torch.int64)

CASES = {
    f"{dtype}-{memory_format}-{'clamped' if clamp else 'free'}".replace("torch.", ""): partial(
        uniform_l2_start, IMAGES.to(dtype).to(memory_format=memory_format), 0.5, KEY, clamp=clamp
    )
    for dtype, memory_format, clamp in (
        (torch.float32, torch.contiguous_format, False),
        (torch.float32, torch.channels_last, True),
        (torch.bfloat16, torch.channels_last, False),
        (torch.float64, torch.channels_last, True),
    )
}
