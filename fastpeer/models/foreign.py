"""Networks that are not fastpeer's own: timm's, and classes that the user wrote."""

import importlib
import inspect
from typing import Any

import torch
from torch import Tensor, nn

from fastpeer.errors import UserError, brief
from fastpeer.own_code import current_folder_first, import_own, told
from fastpeer.suggestions import similar


def timm_network(name: str, classes: int, size: tuple[int, int] | None) -> nn.Module:
    """Build a network of timm's with fresh weights.

    Args:
        name: as `timm.list_models` has it.
        classes: width of its logits.
        size: height and width of the images; networks that are made for one size are made for this one.

    Raises:
        UserError: timm is missing or has no such network, or it cannot take these images.
    """
    timm = _timm()
    known = timm.list_models()
    if name.partition(".")[0] not in known:
        near = similar(name, known) or known[:3]
        raise UserError(f"timm has no network {name!r}; the nearest are timm:{', timm:'.join(near)}")
    config = timm.get_pretrained_cfg(name)
    wanted: dict[str, Any] = {}
    if size is not None and config is not None and config.fixed_input_size and config.input_size[1:] != size:
        wanted["img_size"] = size
    try:
        network: nn.Module = timm.create_model(name, pretrained=False, num_classes=classes, **wanted)
    except Exception as error:  # timm's networks raise whatever their shapes lead to.
        made_for = f" for images of {size[0]}×{size[1]}" if size and wanted else ""
        raise UserError(f"timm:{name} cannot be built{made_for} ({brief(error)})") from None
    return _tried(network, f"timm:{name}", classes, size)


def own_network(module: str, attribute: str, classes: int, size: tuple[int, int] | None) -> nn.Module:
    """Import a class of the user's, from the current folder or wherever Python finds it, and make one.

    Args:
        module: its module, such as `nets.small`.
        attribute: its name there, such as `Net`; any callable that returns a network will do.
        classes: width of its logits; handed on as `num_classes` or `classes`, or else as the first argument.
        size: height and width of the images, None if they are not known.

    Raises:
        UserError: it is not there, cannot be called, or is no network from images to logits.
    """
    name = f"{module}:{attribute}"
    with current_folder_first():
        build = _imported(module, attribute, name)
        try:
            network = _called(build, classes)
        except (Exception, SystemExit) as error:  # It is the user's own code.
            raise UserError(f"{name} cannot be built for {classes} classes ({told(error)})") from None
    if not isinstance(network, nn.Module):
        raise UserError(f"{name} makes a {type(network).__name__}: it must make a torch.nn.Module")
    return _tried(network, name, classes, size)


def _timm() -> Any:
    try:
        return importlib.import_module("timm")
    except ImportError as error:
        missing = "" if error.name == "timm" else f" in full: {brief(error)}"
        raise UserError(f"a network of timm needs timm{missing}; pip install timm") from None


def _imported(module: str, attribute: str, name: str) -> Any:
    found: Any = import_own(module, f"network {name}")
    for part in attribute.split("."):
        if not hasattr(found, part):
            raise UserError(f"network {name}: {module} has no {attribute}{_nearest(part, dir(found))}")
        found = getattr(found, part)
    if not callable(found):
        raise UserError(f"network {name}: is of type {type(found).__name__}, no class that makes networks")
    return found


def _called(build: Any, classes: int) -> object:
    try:
        names: list[str] = list(inspect.signature(build).parameters)
    except (TypeError, ValueError):  # It does not tell.
        names = []
    for name in ("num_classes", "classes"):
        if name in names:
            return build(**{name: classes})
    return build(classes)


def _tried(network: nn.Module, name: str, classes: int, size: tuple[int, int] | None) -> nn.Module:
    """Run a network once, so that what does not fit is said before the training, and leave it as it was."""
    if size is None:
        return network
    modes = [(module, module.training) for module in network.modules()]
    what = f"images of {size[0]}×{size[1]}"
    try:
        logits = _run(network.eval(), size)
    except Exception as error:  # Whatever foreign code leads to.
        raise UserError(f"the network {name} does not take {what} ({told(error)})") from None
    for module, training in modes:
        module.training = training
    if not isinstance(logits, Tensor) or logits.shape != (2, classes):
        found = tuple(logits.shape) if isinstance(logits, Tensor) else type(logits).__name__
        raise UserError(f"the network {name} makes {found} of 2 {what}: it must make logits (2, {classes})")
    return network


@torch.no_grad()
def _run(network: nn.Module, size: tuple[int, int]) -> object:
    some = next(network.parameters(), torch.empty(0))
    return network(torch.zeros(2, 3, *size, dtype=some.dtype, device=some.device))


def _nearest(word: str, valid: list[str]) -> str:
    near = similar(word, valid, most=1, likeness=0.6)
    return f"; did you mean {near[0]}?" if near else ""
