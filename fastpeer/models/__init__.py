"""Networks for small images: (B, 3, H, W) in [0, 1] to (B, classes) logits.

Importing this package does not import PyTorch; building a network does.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from fastpeer.models.names import check_model_name, model_names, wide_resnet_size

if TYPE_CHECKING:
    from torch import nn

__all__ = ["build_model", "check_model_name", "model_names"]


def build_model(name: str, classes: int) -> nn.Module:
    """Build a network with fresh weights, in PyTorch's default dtype and on its default device.

    Raises:
        UserError: there is no network of that name.
    """
    check_model_name(name)
    from fastpeer.models import mobilenetv2, preact_resnet, resnet, wide_resnet

    if size := wide_resnet_size(name):
        return wide_resnet.WideResNet(*size, classes)
    builders = {
        "resnet8": resnet.resnet8,
        "resnet18": resnet.resnet18,
        "resnet34": resnet.resnet34,
        "resnet50": resnet.resnet50,
        "preactresnet18": preact_resnet.preactresnet18,
        "mobilenetv2": mobilenetv2.MobileNetV2,
    }
    return builders[name](classes)
