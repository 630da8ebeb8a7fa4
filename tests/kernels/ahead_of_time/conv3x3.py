"""The convolution at the shapes of ResNet-18's and a wide ResNet's stages, batch 128, forward and back."""

import torch

from fastpeer.kernels.fused.conv3x3 import Tile, convolution, convolution_input_gradient

# Hopper brought the engine that copies its boxes; before, registers hold what that does.
CAPABILITIES = (90, 100)


def tensors(channels, side, dtype):
    x = torch.empty(128, channels, side, side, dtype=dtype, memory_format=torch.channels_last)
    weight = torch.empty(channels, channels, 3, 3, dtype=dtype).to(memory_format=torch.channels_last)
    return x, weight, torch.empty(channels)


def forward(channels, side, tile, dtype=torch.bfloat16):
    x, weight, bias = tensors(channels, side, dtype)
    return lambda: convolution(x, weight, bias, x.clone(), True, tile)


def back(channels, side, tile, dtype=torch.bfloat16):
    x, weight, _ = tensors(channels, side, dtype)
    return lambda: convolution_input_gradient(x, weight, x.clone(), x.clone(), tile)


CASES = {
    "forward-64": forward(64, 32, Tile(128, 64, 4, 3)),
    "forward-8": forward(8, 8, Tile(32, 16, 4, 2), torch.float16),
    "forward-512": forward(512, 4, Tile(128, 128, 8, 3)),
    "forward-160-float16": forward(160, 32, Tile(128, 64, 4, 3), torch.float16),
    "back-64": back(64, 32, Tile(128, 64, 4, 3)),
    "back-256": back(256, 8, Tile(128, 128, 8, 3)),
}
