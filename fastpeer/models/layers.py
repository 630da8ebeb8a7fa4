"""Layers and stages that the networks share."""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

NEEDS_PLANES = "needs_planes"
"""Attribute of a network from outside that does not run in channels-last memory."""
Block = Callable[[int, int, int], nn.Module]
"""Builds a residual block from its input planes, output planes and stride."""


def conv3x3(in_planes: int, out_planes: int, stride: int = 1, groups: int = 1) -> nn.Conv2d:
    """Return a 3×3 convolution without bias, padded so that stride 1 keeps H and W."""
    return nn.Conv2d(in_planes, out_planes, 3, stride, padding=1, groups=groups, bias=False)


def conv1x1(in_planes: int, out_planes: int, stride: int = 1) -> nn.Conv2d:
    """Return a 1×1 convolution without bias."""
    return nn.Conv2d(in_planes, out_planes, 1, stride, bias=False)


def projection_shortcut(in_planes: int, out_planes: int, stride: int) -> nn.Sequential:
    """Return a 1×1 convolution and BatchNorm if a block changes the shape, else an identity."""
    if stride == 1 and in_planes == out_planes:
        return nn.Sequential()
    return nn.Sequential(conv1x1(in_planes, out_planes, stride), nn.BatchNorm2d(out_planes))


def stage(block: Block, in_planes: int, out_planes: int, depth: int, stride: int) -> nn.Sequential:
    """Return `depth` blocks; the first one changes the number of planes and has the stride."""
    first = block(in_planes, out_planes, stride)
    return nn.Sequential(first, *(block(out_planes, out_planes, 1) for _ in range(depth - 1)))


def stages(block: Block, stem: int, widths: Sequence[int], depths: Sequence[int]) -> list[nn.Sequential]:
    """Return the stages of a ResNet: the first one keeps H and W, each further one halves them."""
    in_widths = (stem, *widths[:-1])
    strides = (1, *(2 for _ in widths[1:]))
    return [stage(block, *shape) for shape in zip(in_widths, widths, depths, strides, strict=True)]


def global_average_pool(x: Tensor) -> Tensor:
    """Average each plane: (B, C, H, W) to (B, C)."""
    return torch.flatten(F.adaptive_avg_pool2d(x, 1), 1)
