"""Networks from outside fastpeer: timm's, and the user's own classes."""

import importlib
import importlib.util
import inspect
import logging
import re
from typing import Any

import torch
from torch import Tensor, nn

from fastpeer.errors import UserError, brief
from fastpeer.models.layers import NEEDS_PLANES
from fastpeer.models.probing import undisturbed
from fastpeer.own_code import current_folder_first, error_text, import_own
from fastpeer.suggestions import similar

log = logging.getLogger(__name__)


def timm_network(name: str, classes: int, size: tuple[int, int] | None) -> nn.Module:
    """Build a timm network with new random weights.

    Args:
        name: a name in `timm.list_models`, with or without a pretrained tag.
        classes: number of logits.
        size: height and width of the images; networks with a fixed input size are built for this one.

    Raises:
        UserError: timm is missing or has no such network, or the network does not accept these images.
    """
    timm = _timm()
    known = timm.list_models()
    if name.partition(".")[0] not in known:
        near = similar(name, known)
        listed = (
            f"the nearest are timm:{', timm:'.join(near)}" if near else "timm.list_models() lists its own"
        )
        raise UserError(f"timm has no network {name!r}; {listed}")
    options = timm_options(name, size)
    try:
        network: nn.Module = timm.create_model(name, pretrained=False, num_classes=classes, **options)
    except Exception as error:  # timm does not check sizes: constructors raise anything.
        purpose = f" for images of {size[0]}×{size[1]}" if size and options else ""
        raise UserError(f"timm:{name} cannot be built{purpose} ({brief(error)})") from None
    return _checked(network, f"timm:{name}", classes, size)


def timm_options(name: str, size: tuple[int, int] | None) -> dict[str, Any]:
    """Return what timm's `create_model` is given so that a network takes images of a height and width."""
    config = _timm().get_pretrained_cfg(name)
    # Networks without a fixed size do not accept the argument.
    fixed = size is not None and config is not None and config.fixed_input_size
    return {"img_size": size} if fixed and config.input_size[1:] != size else {}


def own_network(module: str, attribute: str, classes: int, size: tuple[int, int] | None) -> nn.Module:
    """Build a network of the user's own class, found in the current folder or on Python's path.

    Args:
        module: the class's module, such as `nets.small`.
        attribute: the class's name there, such as `Net`; may be a function that returns a network.
        classes: number of logits; passed as `num_classes` or `classes` if there is such a parameter, else as
            the first argument.
        size: height and width of the images; None: not known.

    Raises:
        UserError: the class does not exist, cannot be called, or does not map images to logits.
    """
    name = f"{module}:{attribute}"
    with current_folder_first():
        build = _import_callable(module, attribute, name)
        try:
            network = _call(build, classes)
        except (Exception, SystemExit) as error:  # The user's own code may raise anything.
            raise UserError(f"{name} cannot be built for {classes} classes ({error_text(error)})") from None
    if not isinstance(network, nn.Module):
        raise UserError(f"{name} must return a torch.nn.Module, got {type(network).__name__}")
    return _checked(network, name, classes, size)


def _timm() -> Any:
    try:
        return importlib.import_module("timm")
    except ImportError as error:
        # timm may be installed, but a package that it imports is missing.
        missing = (error.name or "").partition(".")[0]
        if missing == "torchvision":
            raise UserError(
                f"a timm network needs torchvision ({brief(error)}); {torchvision_advice()}"
            ) from None
        reason = "" if missing == "timm" else f" ({brief(error)})"
        # By itself, pip may choose a torchvision that is for another PyTorch, and replace PyTorch too.
        bare = importlib.util.find_spec("torchvision") is None
        also = f" (and with it torchvision: {torchvision_advice()})" if bare else ""
        raise UserError(f"a timm network needs timm{reason}; pip install timm{also}") from None
    except Exception as error:  # Loading a torchvision for another PyTorch raises what its operators do.
        raise UserError(f"timm cannot be imported ({brief(error)}); {torchvision_advice()}") from None


def torchvision_advice(version: str = torch.__version__) -> str:
    """Return how to get the torchvision for a version of PyTorch: torch 2.y.z is paired with 0.(y + 15).z."""
    release = re.fullmatch(r"2\.([0-9]+)\.([0-9]+)(\+[a-z0-9.]+)?", version)
    if release is None:
        return (
            f"torch {version} is no release, for which there may be no torchvision: take one, such as"
            " pip install torch==2.8.0 torchvision==0.23.0"
        )
    minor, micro, build = int(release[1]), release[2], release[3] or ""
    fitting = f"pip install --no-deps torchvision==0.{minor + 15}.{micro}{build}"
    source = f" from the index that torch {version} came from" if build else ""
    earlier = f"torch==2.{minor - 1}.0 torchvision==0.{minor + 14}.0"
    return f"for torch {version} that is {fitting}{source}; if there is none yet, {earlier}"


def _import_callable(module: str, attribute: str, name: str) -> Any:
    value: Any = import_own(module, "network", name)
    for part in attribute.split("."):
        if not hasattr(value, part):
            raise UserError(f"network {name}: {module} has no {attribute}{_suggestion(part, dir(value))}")
        value = getattr(value, part)
    if isinstance(value, type):
        fits, found = issubclass(value, nn.Module), f"the class {value.__name__}"
    else:
        # A function in Python that returns a network is one's own; of those in C, os._exit ends the program.
        fits, found = inspect.isfunction(value) or inspect.ismethod(value), type(value).__name__
    if not fits:
        raise UserError(
            f"network {name}: must be a class that builds networks, got {found}; such a class is derived from"
            " torch.nn.Module, or a function returns one"
        )
    return value


def _call(build: Any, classes: int) -> object:
    name = class_argument(build)
    return build(**{name: classes}) if name else build(classes)


def class_argument(build: Any) -> str:
    """Return the name of a class's or function's argument for the number of classes; empty: the first one."""
    try:
        names: list[str] = list(inspect.signature(build).parameters)
    except (TypeError, ValueError):  # Some callables written in C have no signature.
        names = []
    return next((name for name in ("num_classes", "classes") if name in names), "")


def _checked(network: nn.Module, name: str, classes: int, size: tuple[int, int] | None) -> nn.Module:
    """Return a network in PyTorch's default dtype that leaves its images as they are.

    It is run once in each mode, so that wrong shapes are an error before the training.
    """
    converted = _convert_weights(network, name)
    if size is None:
        return network
    what = f"images of {size[0]}×{size[1]}"
    try:
        logits, in_place = _run_in_its_layout(network, name, size)
    except Exception as error:  # Code from outside fastpeer may raise anything.
        raise UserError(
            f"the network {name} does not accept {what} ({error_text(error)}){converted}"
        ) from None
    if not isinstance(logits, Tensor) or logits.shape != (2, classes):
        actual = tuple(logits.shape) if isinstance(logits, Tensor) else type(logits).__name__
        hint = _hint_on_output(logits, classes)
        raise UserError(f"the network {name} must map 2 {what} to logits (2, {classes}), got {actual}{hint}")
    if in_place:
        log.info("%s changes its images in place: it is given a copy of them", name)
        network.register_forward_pre_hook(_copy_images)
    return network


def _hint_on_output(output: object, classes: int) -> str:
    """Return what a network should do instead, for outputs that hold the logits in another form."""
    if isinstance(output, Tensor):
        flat = output.dim() > 2 and output.flatten(1).shape == (2, classes)
        return "; let it return .flatten(1) of that" if flat else ""
    entries = dict(enumerate(output)) if isinstance(output, tuple | list) else output
    if not isinstance(entries, dict):
        return ""
    fitting = [
        key for key, value in entries.items() if isinstance(value, Tensor) and value.shape == (2, classes)
    ]
    return f"; let it return entry {fitting[0]!r} of that alone" if fitting else ""


def _convert_weights(network: nn.Module, name: str) -> str:
    """Convert weights to PyTorch's default dtype, in place; return a note for errors if they were of another.

    Half-precision weights would round those of a file, and could be trained in no precision of a run.
    """
    own = torch.get_default_dtype()
    tensors = [*network.parameters(), *network.buffers()]
    others = {tensor.dtype for tensor in tensors if tensor.is_floating_point()} - {own}
    if not others:
        return ""
    network.to(own)
    names = ", ".join(sorted(str(dtype).removeprefix("torch.") for dtype in others))
    wanted = str(own).removeprefix("torch.")
    log.info(
        "%s builds weights in %s: converted to %s; --precision says in what a run computes",
        name,
        names,
        wanted,
    )
    return f"; it builds weights in {names}, but must compute in the dtype of the images it is given"


def _run_in_its_layout(network: nn.Module, name: str, size: tuple[int, int]) -> tuple[object, bool]:
    """Run a network in channels-last memory, or where it cannot in NCHW order, from then on; see `_run`."""
    try:
        return _run(network, size)
    except RuntimeError as error:
        if "view size is not compatible" not in str(error):
            raise
    log.info("%s runs in NCHW memory, as its .view(...) asks for: .reshape(...) would not", name)
    setattr(network, NEEDS_PLANES, True)
    network.register_forward_pre_hook(_in_planes)
    return _run(network, size)


@torch.no_grad()
def _run(network: nn.Module, size: tuple[int, int]) -> tuple[object, bool]:
    """Return what a network makes of two images in eval mode, and whether it changes them, in any mode."""
    parameter = next(network.parameters(), torch.empty(0))
    images = torch.linspace(0, 1, 6 * size[0] * size[1], dtype=parameter.dtype, device=parameter.device)
    # In the memory format of a training, which some code does not accept: x.view(len(x), -1) of planes.
    images = images.view(2, 3, *size).contiguous(memory_format=torch.channels_last)
    with undisturbed(network, images.device):
        given = images.clone()
        logits = network(given)
        return logits, _is_changed(given, images) or _trains_in_place(network, images)


def _trains_in_place(network: nn.Module, images: Tensor) -> bool:
    """Tell whether a network changes its images in train mode, without moving its running statistics."""
    given = images.clone()
    buffers = {name: buffer.clone() for name, buffer in network.named_buffers()}
    try:
        torch.func.functional_call(network.train(), buffers, given)
    except Exception:  # Whatever it raises for two images it may not raise for a batch.
        log.debug("the network does not train on two images", exc_info=True)
    return _is_changed(given, images)


def _is_changed(given: Tensor, images: Tensor) -> bool:
    # The version also tells of changes that happened to leave these values; writing through `.data` has none.
    return given._version > 0 or not torch.equal(given, images)


def _copy_images(network: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...]:
    """Hand a network a copy of its images: a leaf of autograd's must not change, nor others' images."""
    return (args[0].clone(), *args[1:])


def _in_planes(network: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...]:
    return (args[0].contiguous(), *args[1:])


def _suggestion(word: str, valid: list[str]) -> str:
    near = similar(word, valid, most=1, likeness=0.6)
    return f"; did you mean {near[0]}?" if near else ""
