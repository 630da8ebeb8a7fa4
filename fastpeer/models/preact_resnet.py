"""Pre-activation ResNet-18 for small images, in two forms.

Source: He et al. 2016, "Identity Mappings in Deep Residual Networks". `preactresnet18` has stem and names of
the released PeerAiD code, which has no batch norm before the classifier and projects a block's raw input.
`preactresnet18-rice` is that of Rice et al. (locuslab/robust_overfitting) and of AKD2's released code
(VITA-Group/Alleviate-Robust-Overfitting), which have the one and project the activated input.
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


class ActivatedShortcutBlock(PreActBlock):
    """A pre-activation block that projects its input after batch norm and ReLU, not as it comes."""

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, in_planes, H, W) to (B, out_planes, H/stride, W/stride)."""
        activated = F.relu(self.bn1(x))
        out = self.conv2(F.relu(self.bn2(self.conv1(activated))))
        # Without a projection, what is added is the raw input.
        total: Tensor = out + (self.shortcut(activated) if len(self.shortcut) else x)
        return total


class PreActResNet(nn.Module):
    """3×3 stem, four stages of pre-activation blocks, average pooling, linear classifier.

    Maps images (B, 3, H, W) in [0, 1] to logits (B, classes), in the dtype of the weights.
    """

    def __init__(
        self, depths: tuple[int, int, int, int], classes: int, block: type[PreActBlock] = PreActBlock
    ) -> None:
        super().__init__()
        self.conv1 = conv3x3(3, 64)
        layers = stages(block, 64, (64, 128, 256, 512), depths)
        self.layer1, self.layer2, self.layer3, self.layer4 = layers
        self.linear = nn.Linear(512, classes)

    def forward(self, x: Tensor) -> Tensor:
        """Map images (B, 3, H, W) in [0, 1] to logits (B, classes)."""
        logits: Tensor = self.linear(global_average_pool(self.features(x)))
        return logits

    def features(self, x: Tensor) -> Tensor:
        """Map images (B, 3, H, W) to what is pooled, (B, 512, H/8, W/8)."""
        x = self.layer2(self.layer1(self.conv1(x)))
        planes: Tensor = self.layer4(self.layer3(x))
        return planes


class RicePreActResNet(PreActResNet):
    """The network with projections of the activated input, and batch norm and ReLU before the pooling."""

    def __init__(self, depths: tuple[int, int, int, int], classes: int) -> None:
        super().__init__(depths, classes, ActivatedShortcutBlock)
        self.bn = nn.BatchNorm2d(512)

    def features(self, x: Tensor) -> Tensor:
        """Map images (B, 3, H, W) to what is pooled, (B, 512, H/8, W/8)."""
        return F.relu(self.bn(super().features(x)))


def preactresnet18(classes: int) -> PreActResNet:
    """Build PreActResNet-18, with two blocks in each of its four stages, as PeerAiD's code has it."""
    return PreActResNet((2, 2, 2, 2), classes)


def preactresnet18_rice(classes: int) -> RicePreActResNet:
    """Build PreActResNet-18 as Rice et al. and AKD2's code have it."""
    return RicePreActResNet((2, 2, 2, 2), classes)
