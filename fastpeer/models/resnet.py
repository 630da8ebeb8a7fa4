"""ResNets for small images.

Source: He et al. 2016, "Deep Residual Learning for Image Recognition"; stem and names as in the released
PeerAiD code.
"""

from collections.abc import Sequence

from torch import Tensor, nn
from torch.nn import functional as F

from fastpeer.models.layers import Block, conv1x1, conv3x3, global_average_pool, projection_shortcut, stages

EXPANSION = 4
WIDTHS = (64, 128, 256, 512)


class BasicBlock(nn.Module):
    """Two 3×3 convolutions: (B, in_planes, H, W) to (B, out_planes, H/stride, W/stride)."""

    def __init__(self, in_planes: int, out_planes: int, stride: int) -> None:
        super().__init__()
        self.conv1 = conv3x3(in_planes, out_planes, stride)
        self.bn1 = nn.BatchNorm2d(out_planes)
        self.conv2 = conv3x3(out_planes, out_planes)
        self.bn2 = nn.BatchNorm2d(out_planes)
        self.shortcut = projection_shortcut(in_planes, out_planes, stride)

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, in_planes, H, W) to (B, out_planes, H/stride, W/stride)."""
        out = F.relu(self.bn1(self.conv1(x)))
        out = self.bn2(self.conv2(out))
        return F.relu(out + self.shortcut(x))


class Bottleneck(nn.Module):
    """1×1, 3×3 and 1×1 convolutions: (B, in_planes, H, W) to (B, out_planes, H/stride, W/stride)."""

    def __init__(self, in_planes: int, out_planes: int, stride: int) -> None:
        super().__init__()
        planes = out_planes // EXPANSION
        self.conv1 = conv1x1(in_planes, planes)
        self.bn1 = nn.BatchNorm2d(planes)
        self.conv2 = conv3x3(planes, planes, stride)
        self.bn2 = nn.BatchNorm2d(planes)
        self.conv3 = conv1x1(planes, out_planes)
        self.bn3 = nn.BatchNorm2d(out_planes)
        self.shortcut = projection_shortcut(in_planes, out_planes, stride)

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, in_planes, H, W) to (B, out_planes, H/stride, W/stride)."""
        out = F.relu(self.bn1(self.conv1(x)))
        out = F.relu(self.bn2(self.conv2(out)))
        out = self.bn3(self.conv3(out))
        return F.relu(out + self.shortcut(x))


class ResNet(nn.Module):
    """3×3 stem without max-pooling, one stage of blocks per width, average pooling, linear classifier.

    Maps images (B, 3, H, W) in [0, 1] to logits (B, classes), in the dtype of the weights.
    """

    def __init__(
        self, block: Block, stem: int, widths: Sequence[int], depths: Sequence[int], classes: int
    ) -> None:
        super().__init__()
        self.conv1 = conv3x3(3, stem)
        self.bn1 = nn.BatchNorm2d(stem)
        self.stage_names = [f"layer{number}" for number in range(1, len(widths) + 1)]
        for name, layer in zip(self.stage_names, stages(block, stem, widths, depths), strict=True):
            self.add_module(name, layer)
        self.linear = nn.Linear(widths[-1], classes)

    def forward(self, x: Tensor) -> Tensor:
        """Map images (B, 3, H, W) in [0, 1] to logits (B, classes)."""
        x = F.relu(self.bn1(self.conv1(x)))
        for name in self.stage_names:
            x = getattr(self, name)(x)
        logits: Tensor = self.linear(global_average_pool(x))
        return logits


def resnet8(classes: int) -> ResNet:
    """Build a ResNet of three narrow stages with one block each, for demonstrations and tests."""
    return ResNet(BasicBlock, 16, (16, 32, 64), (1, 1, 1), classes)


def resnet18(classes: int) -> ResNet:
    """Build ResNet-18: basic blocks, 2 in each stage."""
    return ResNet(BasicBlock, 64, WIDTHS, (2, 2, 2, 2), classes)


def resnet34(classes: int) -> ResNet:
    """Build ResNet-34: basic blocks, 3, 4, 6 and 3 in its stages."""
    return ResNet(BasicBlock, 64, WIDTHS, (3, 4, 6, 3), classes)


def resnet50(classes: int) -> ResNet:
    """Build ResNet-50: bottlenecks whose 3×3 convolution has the stride, as in most implementations."""
    return ResNet(Bottleneck, 64, [EXPANSION * width for width in WIDTHS], (3, 4, 6, 3), classes)
