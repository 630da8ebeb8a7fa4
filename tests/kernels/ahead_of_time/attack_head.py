"""The last layers at the shapes of a training, batch 128: ResNet-18, MobileNetV2, a wide ResNet."""

import torch

from fastpeer.kernels.fused.attack_head import attack_head

DAILY = ("resnet18-10",)


def head(channels, side, classes, dtype=torch.bfloat16, labels=False):
    features = torch.empty(128, channels, side, side, dtype=dtype, memory_format=torch.channels_last)
    target = torch.empty(128, dtype=torch.int64) if labels else torch.empty(128, classes)
    return lambda: attack_head(
        features, torch.empty(classes, channels), torch.empty(classes), target, 1.0, relu=True
    )


CASES = {
    "resnet18-10": head(512, 4, 10),
    "resnet18-100": head(512, 4, 100, labels=True),
    "resnet18-200-large": head(512, 8, 200, torch.float16),
    "mobilenetv2-10": head(1280, 4, 10),
    "wideresnet34x10-10": head(640, 8, 10, torch.float32),
    "thousand-classes": head(512, 7, 1000),
}
