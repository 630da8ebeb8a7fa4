"""The first convolution at the shapes of a training, batch 128: ResNet-18, a wide ResNet, large images."""

import torch

from fastpeer.kernels.fused.first_convolution import (
    first_convolution,
    first_convolution_gradient,
    first_convolution_step,
)


def forward(channels, side=32, into=3, dtype=torch.bfloat16):
    images = torch.empty(128, into, side, side, memory_format=torch.channels_last)
    weight = torch.empty(channels, into, 3, 3, memory_format=torch.channels_last)
    return lambda: first_convolution(images, weight, torch.empty(channels), True, dtype)


def back(channels, side=32, into=3, dtype=torch.bfloat16, stages=1):
    shape = 128, channels, side, side
    gradient = torch.empty(shape, dtype=dtype, memory_format=torch.channels_last)
    weight = torch.empty(channels, into, 3, 3, memory_format=torch.channels_last)
    return lambda: first_convolution_gradient(gradient, weight, stages)


def step(channels, side=32, dtype=torch.bfloat16):
    gradient = torch.empty(128, channels, side, side, dtype=dtype, memory_format=torch.channels_last)
    weight = torch.empty(channels, 3, 3, 3, memory_format=torch.channels_last)
    images = torch.empty(128, 3, side, side, memory_format=torch.channels_last)
    count = torch.empty(1, dtype=torch.int64)
    return lambda: first_convolution_step(gradient, weight, images, images.clone(), 0.1, 0.1, count)


DAILY = (
    "forward-64", "forward-16", "forward-160", "forward-32-float32", "back-16", "back-160", "back-32-float32",
    "back-64-copied", "step-64",
)  # fmt: skip
CASES = {
    "forward-64": forward(64),
    "forward-16": forward(16),
    "forward-160": forward(160, 64, 4, torch.float16),
    "forward-32-float32": forward(32, 28, 1, torch.float32),
    "back-64": back(64),
    "back-16": back(16),
    "back-160": back(160, 64, 4, torch.float16),
    "back-32-float32": back(32, 28, 1, torch.float32),
    "back-64-copied": back(64, stages=3),
    "back-64-wide": back(64, 224),
    "step-64": step(64),
    "step-16-float16": step(16, 64, torch.float16),
}
