"""Pre-activation ResNet-18 for small images.

Source: He et al. 2016, "Identity Mappings in Deep Residual Networks"; stem and names as in the released
PeerAiD code, which has no batch norm before the classifier and projects a block's raw input.
"""

from torch import Tensor, nn
from torch.nn import functional as F

from fastpeer.models.layers import conv1x1, conv3x3, global_average_pool, stages


class PreActBlock(nn.Module):
    """Two 3×3 convolutions, each after batch norm and ReLU.

    Maps (B, in_planes, H, W) to (B, out_planes, H/stride, W/stride).
    """

    def __init__(self, in_planes: int, out_planes: int, stride: int) -> None:
        super().__init__()
        self.bn1 = nn.BatchNorm2d(in_planes)
        self.conv1 = conv3x3(in_planes, out_planes, stride)
        self.bn2 = nn.BatchNorm2d(out_planes)
        self.conv2 = conv3x3(out_planes, out_planes)
        self.shortcut = nn.Sequential()
        if stride != 1 or in_planes != out_planes:
            self.shortcut.append(conv1x1(in_planes, out_planes, stride))

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, in_planes, H, W) to (B, out_planes, H/stride, W/stride)."""
        out = self.conv1(F.relu(self.bn1(x)))
        out = self.conv2(F.relu(self.bn2(out)))
        total: Tensor = out + self.shortcut(x)
        return total


class PreActResNet(nn.Module):
    """3×3 stem, four stages of pre-activation blocks, average pooling, linear classifier.

    Maps images (B, 3, H, W) in [0, 1] to logits (B, classes), in the dtype of the weights.
    """

    def __init__(self, depths: tuple[int, int, int, int], classes: int) -> None:
        super().__init__()
        self.conv1 = conv3x3(3, 64)
        layers = stages(PreActBlock, 64, (64, 128, 256, 512), depths)
        self.layer1, self.layer2, self.layer3, self.layer4 = layers
        self.linear = nn.Linear(512, classes)

    def forward(self, x: Tensor) -> Tensor:
        """Map images (B, 3, H, W) in [0, 1] to logits (B, classes)."""
        x = self.layer2(self.layer1(self.conv1(x)))
        x = self.layer4(self.layer3(x))
        logits: Tensor = self.linear(global_average_pool(x))
        return logits


def preactresnet18(classes: int) -> PreActResNet:
    """Build PreActResNet-18, with two blocks in each of its four stages."""
    return PreActResNet((2, 2, 2, 2), classes)
