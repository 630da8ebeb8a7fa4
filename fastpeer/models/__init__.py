"""Networks for small images: (B, 3, H, W) in [0, 1] to logits (B, classes).

Importing this package does not import PyTorch, so that settings are checked quickly; building a network does.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING

from fastpeer.models.names import check_model_name, class_path, model_names, timm_name, wide_resnet_size
from fastpeer.models.sizes import TO_LOAD, refuse_too_large

if TYPE_CHECKING:
    from torch import nn

__all__ = ["build_model", "check_model_name", "model_names"]


def build_model(
    name: str,
    classes: int,
    size: tuple[int, int] | None = None,
    *,
    mean: tuple[float, ...] = (),
    std: tuple[float, ...] = (),
) -> nn.Module:
    """Build a network with new random weights, in PyTorch's default dtype and on its default device.

    Args:
        name: see `check_model_name`.
        classes: number of logits.
        size: height and width of the images; timm's networks and the user's are built for it and run once.
        mean: subtracted from the images inside the network; a number, or one for each channel. Empty: no
            normalisation.
        std: the images are divided by it after that; as many numbers as `mean`.

    Raises:
        UserError: there is no network of that name, it cannot be built, or is larger than this machine.
    """
    check_model_name(name)
    refuse_too_large([name], classes, TO_LOAD)
    network = _build(name, classes, size)
    if not mean:
        return network
    from fastpeer.models.normalized import Normalized

    return Normalized(network, mean, std)


def _build(name: str, classes: int, size: tuple[int, int] | None) -> nn.Module:
    from fastpeer.models import foreign

    if (timm_model := timm_name(name)) is not None:
        return foreign.timm_network(timm_model, classes, size)
    if path := class_path(name):
        return foreign.own_network(*path, classes, size)
    return _build_shipped(name, classes)


def _build_shipped(name: str, classes: int) -> nn.Module:
    return shipped_builder(name)(classes)


def shipped_builder(name: str) -> partial[nn.Module]:
    """Return what builds a shipped network: a function or class, and its arguments but for the classes."""
    from fastpeer.models import mobilenetv2, preact_resnet, resnet, wide_resnet

    builders: dict[str, Callable[..., nn.Module]] = {
        "resnet8": resnet.resnet8,
        "resnet18": resnet.resnet18,
        "resnet34": resnet.resnet34,
        "resnet50": resnet.resnet50,
        "preactresnet18": preact_resnet.preactresnet18,
        "preactresnet18-rice": preact_resnet.preactresnet18_rice,
        "mobilenetv2": mobilenetv2.MobileNetV2,
    }
    wide = wide_resnet_size(name)
    build: Callable[..., nn.Module] = wide_resnet.WideResNet if wide else builders[name]
    return partial(build, *(wide or ()))
