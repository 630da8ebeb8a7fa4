"""Launches of the noise that an attack starts from."""

from functools import partial

import torch

from fastpeer.kernels.fused.gaussian_start import gaussian_start

IMAGES, KEY = torch.zeros(128, 3, 32, 32), torch.zeros((), dtype=torch.int64)

CASES = {
    f"{dtype}-{memory_format}-{'clamped' if clamp else 'free'}".replace("torch.", ""): partial(
        gaussian_start, IMAGES.to(dtype).to(memory_format=memory_format), 0.001, KEY, clamp=clamp
    )
    for dtype in (torch.float32, torch.bfloat16, torch.float64)
    for memory_format in (torch.contiguous_format, torch.channels_last)
    for clamp in (False, True)
}
