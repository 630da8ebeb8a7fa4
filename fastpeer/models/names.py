"""Names of the networks; importing this module does not import PyTorch."""

import re

from fastpeer.errors import UserError
from fastpeer.suggestions import similar

MODEL_NAMES = (
    "resnet8",
    "resnet18",
    "resnet34",
    "resnet50",
    "preactresnet18",
    "preactresnet18-rice",
    "wideresnet28x10",
    "wideresnet34x10",
    "wideresnet70x16",
    "mobilenetv2",
)
# At most three digits each: int() refuses numbers of more than 4300 digits.
WIDE_RESNET = re.compile(r"wideresnet([1-9][0-9]{0,2})x([1-9][0-9]{0,2})")
TIMM_PREFIX = "timm:"
TIMM_NAME = re.compile(r"[A-Za-z0-9_.-]+")


def model_names() -> tuple[str, ...]:
    """Return the names of the shipped networks; wide ResNets of other sizes are valid too."""
    return MODEL_NAMES


def check_model_name(name: str) -> None:
    """Check that a name is a shipped network's, `timm:NAME` or `package.module:Class`.

    Whether timm or the module has such a network is checked only when it is built.

    Raises:
        UserError: there is no such network; the message suggests the most similar names.
    """
    if ":" in name:
        _check_foreign_name(name)
    elif name not in MODEL_NAMES and wide_resnet_size(name) is None:
        near = similar(name, MODEL_NAMES)
        listed = f"the {'nearest' if near else 'networks'} are {', '.join(near or MODEL_NAMES)}"
        rule = "; a wide ResNet's depth is 6n+4" if WIDE_RESNET.fullmatch(name) else ""
        raise UserError(f"no network {name!r}; {listed}{rule}")


def wide_resnet_size(name: str) -> tuple[int, int] | None:
    """Return depth and widening factor of a valid wide ResNet's name, else None."""
    match = WIDE_RESNET.fullmatch(name)
    if match is None:
        return None
    depth, widen = int(match[1]), int(match[2])
    return (depth, widen) if depth > 4 and (depth - 4) % 6 == 0 else None


def timm_name(name: str) -> str | None:
    """Return timm's own name of a network named `timm:NAME`, else None."""
    return name.removeprefix(TIMM_PREFIX) if name.startswith(TIMM_PREFIX) else None


def class_path(name: str) -> tuple[str, str] | None:
    """Return module and class of a network named `package.module:Class`, else None."""
    module, colon, attribute = name.partition(":")
    return (module, attribute) if colon and timm_name(name) is None else None


def _check_foreign_name(name: str) -> None:
    module, _, attribute = name.partition(":")
    if timm_name(name) is not None:
        if not TIMM_NAME.fullmatch(attribute):
            raise UserError(f"no network {name!r}: a timm network must be timm:NAME, such as timm:resnet18")
    elif not all(part.isidentifier() for part in (*module.split("."), *attribute.split("."))):
        raise UserError(
            f"no network {name!r}: your own class must be package.module:Class, such as nets.small:Net"
        )
