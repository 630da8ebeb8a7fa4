"""MobileNetV2 for small images.

Source: Sandler et al. 2018, "MobileNetV2: Inverted Residuals and Linear Bottlenecks"; strides, ReLU in place
of ReLU6, projected shortcuts and names as in the released PeerAiD code.
"""

from functools import partial

from torch import Tensor, nn
from torch.nn import functional as F

from fastpeer.models.layers import conv1x1, conv3x3, global_average_pool, projection_shortcut, stage

STAGES = (
    # expansion, in_planes, out_planes, blocks, stride; for ImageNet, stem and second stage have stride 2
    (1, 32, 16, 1, 1),
    (6, 16, 24, 2, 1),
    (6, 24, 32, 3, 2),
    (6, 32, 64, 4, 2),
    (6, 64, 96, 3, 1),
    (6, 96, 160, 3, 2),
    (6, 160, 320, 1, 1),
)


class InvertedResidual(nn.Module):
    """1×1 expansion, 3×3 depthwise and 1×1 linear convolution, with a shortcut at stride 1.

    Maps (B, in_planes, H, W) to (B, out_planes, H/stride, W/stride).
    """

    def __init__(self, in_planes: int, out_planes: int, stride: int, expansion: int) -> None:
        super().__init__()
        planes = expansion * in_planes
        self.conv1 = conv1x1(in_planes, planes)
        self.bn1 = nn.BatchNorm2d(planes)
        self.conv2 = conv3x3(planes, planes, stride, groups=planes)
        self.bn2 = nn.BatchNorm2d(planes)
        self.conv3 = conv1x1(planes, out_planes)
        self.bn3 = nn.BatchNorm2d(out_planes)
        self.is_residual = stride == 1
        self.shortcut = nn.Sequential()
        if self.is_residual:
            self.shortcut = projection_shortcut(in_planes, out_planes, stride)

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, in_planes, H, W) to (B, out_planes, H/stride, W/stride)."""
        out = F.relu(self.bn1(self.conv1(x)))
        out = F.relu(self.bn2(self.conv2(out)))
        out = self.bn3(self.conv3(out))
        total: Tensor = out + self.shortcut(x) if self.is_residual else out
        return total


class MobileNetV2(nn.Module):
    """3×3 stem at stride 1, inverted residuals, 1×1 convolution, average pooling, linear classifier.

    Maps images (B, 3, H, W) in [0, 1] to logits (B, classes), in the dtype of the weights.
    """

    def __init__(self, classes: int) -> None:
        super().__init__()
        self.conv1 = conv3x3(3, 32)
        self.bn1 = nn.BatchNorm2d(32)
        self.layers = nn.Sequential()
        for expansion, *shape in STAGES:
            self.layers.extend(stage(partial(InvertedResidual, expansion=expansion), *shape))
        self.conv2 = conv1x1(320, 1280)
        self.bn2 = nn.BatchNorm2d(1280)
        self.linear = nn.Linear(1280, classes)

    def forward(self, x: Tensor) -> Tensor:
        """Map images (B, 3, H, W) in [0, 1] to logits (B, classes)."""
        x = F.relu(self.bn1(self.conv1(x)))
        x = F.relu(self.bn2(self.conv2(self.layers(x))))
        logits: Tensor = self.linear(global_average_pool(x))
        return logits
