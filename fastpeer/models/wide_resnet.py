"""Wide ResNets for small images.

Source: Zagoruyko and Komodakis 2016, "Wide Residual Networks", without dropout; names as in the released
PeerAiD code.
"""

from torch import Tensor, nn
from torch.nn import functional as F

from fastpeer.models.layers import conv1x1, conv3x3, global_average_pool, stages

STEM = 16


class WideBlock(nn.Module):
    """Two 3×3 convolutions, each after batch norm and ReLU.

    Maps (B, in_planes, H, W) to (B, out_planes, H/stride, W/stride). Where the planes change, the shortcut
    starts at the activated input, elsewhere at the raw one.
    """

    def __init__(self, in_planes: int, out_planes: int, stride: int) -> None:
        super().__init__()
        self.bn1 = nn.BatchNorm2d(in_planes)
        self.conv1 = conv3x3(in_planes, out_planes, stride)
        self.bn2 = nn.BatchNorm2d(out_planes)
        self.conv2 = conv3x3(out_planes, out_planes)
        self.projects = in_planes != out_planes
        self.convShortcut = conv1x1(in_planes, out_planes, stride) if self.projects else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, in_planes, H, W) to (B, out_planes, H/stride, W/stride)."""
        activated = F.relu(self.bn1(x))
        out = self.conv2(F.relu(self.bn2(self.conv1(activated))))
        total: Tensor = out + self.convShortcut(activated if self.projects else x)
        return total


class WideStage(nn.Module):
    """A stage's blocks inside a module of its own, for the released weight names `block1.layer.0...`."""

    def __init__(self, layer: nn.Sequential) -> None:
        super().__init__()
        self.layer = layer

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, in_planes, H, W) to (B, out_planes, H/stride, W/stride)."""
        out: Tensor = self.layer(x)
        return out


class WideResNet(nn.Module):
    """3×3 stem, three stages of `(depth - 4) / 6` blocks, average pooling, linear classifier.

    Maps images (B, 3, H, W) in [0, 1] to logits (B, classes), in the dtype of the weights.
    """

    def __init__(self, depth: int, widen: int, classes: int) -> None:
        super().__init__()
        widths = (16 * widen, 32 * widen, 64 * widen)
        self.conv1 = conv3x3(3, STEM)
        layers = stages(WideBlock, STEM, widths, [(depth - 4) // 6] * 3)
        self.block1, self.block2, self.block3 = map(WideStage, layers)
        self.bn1 = nn.BatchNorm2d(widths[-1])
        self.fc = nn.Linear(widths[-1], classes)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draw convolution weights from N(0, variance 2 / (k²·out_planes)); zero the classifier's bias."""
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
        nn.init.zeros_(self.fc.bias)

    def forward(self, x: Tensor) -> Tensor:
        """Map images (B, 3, H, W) in [0, 1] to logits (B, classes)."""
        x = self.block3(self.block2(self.block1(self.conv1(x))))
        x = F.relu(self.bn1(x))
        logits: Tensor = self.fc(global_average_pool(x))
        return logits
