"""Convolutions at the shapes of ResNet-18, a wide ResNet and MobileNetV2, batch 128, forward and back."""

import torch

from fastpeer.kernels.convolution_tiles import Tile
from fastpeer.kernels.fused.convolution import convolution, convolution_input_gradient
from fastpeer.kernels.sign_bits import empty_signs

# Hopper brought the engine that copies its boxes.
CAPABILITIES = (90, 100)
DAILY = ("forward-64", "back-256", "forward-strided", "back-strided-160", "back-signs")


def tensors(channels, size, side, stride, dtype):
    into, out = channels
    layout = torch.channels_last
    x = torch.empty(128, into, size, size, dtype=dtype, memory_format=layout)
    y = torch.empty(128, out, size // stride, size // stride, dtype=dtype, memory_format=layout)
    return x, torch.empty(out, into, side, side, dtype=dtype).to(memory_format=layout), y


def forward(channels, size, tile, side=3, stride=1, dtype=torch.bfloat16, boxes=True, packs=False):
    x, weight, y = tensors(channels, size, side, stride, dtype)
    more = {"signs": empty_signs(y.shape, y.device) if packs else None, "tile": tile, "boxes": boxes}
    return lambda: convolution(x, weight, torch.empty(len(weight)), y, True, stride, **more)


def back(channels, size, tile, side=3, stride=1, dtype=torch.bfloat16, boxes=True, packs=False):
    x, weight, y = tensors(channels, size, side, stride, dtype)
    mask = empty_signs(x.shape, x.device) if packs else x.clone()
    return lambda: convolution_input_gradient(y, weight, x, mask, stride, tile=tile, boxes=boxes)


SMALL, LARGE = Tile(128, 64, 4, 3), Tile(128, 128, 8, 3)
CASES = {
    "forward-64": forward((64, 64), 32, SMALL),
    "forward-8": forward((8, 8), 8, Tile(32, 16, 4, 2), dtype=torch.float16),
    "forward-512": forward((512, 512), 4, LARGE),
    "forward-160-float16": forward((160, 160), 32, SMALL, dtype=torch.float16),
    "back-64": back((64, 64), 32, SMALL),
    "back-256": back((256, 256), 8, LARGE),
    "forward-strided": forward((64, 128), 32, LARGE, stride=2),
    "forward-strided-160": forward((160, 320), 32, LARGE, stride=2),
    "back-strided": back((64, 128), 32, LARGE, stride=2),
    "back-strided-160": back((160, 320), 32, LARGE, stride=2),
    "forward-1x1": forward((96, 24), 32, LARGE, 1),
    "forward-1x1-strided": forward((256, 512), 8, LARGE, 1, 2),
    "back-1x1": back((960, 160), 4, LARGE, 1),
    "back-1x1-strided": back((64, 128), 32, LARGE, 1, 2),
    "forward-signs": forward((64, 64), 32, LARGE, packs=True),
    "forward-signs-512": forward((512, 512), 4, LARGE, packs=True),
    "back-signs": back((64, 64), 32, LARGE, packs=True),
    "back-signs-strided": back((160, 320), 32, LARGE, stride=2, packs=True),
}
