"""fastpeer: trains small networks that withstand adversarial attacks, with a peer instead of a teacher."""

import os.path
from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from fastpeer.api import AttackResult, evaluate, load
    from fastpeer.errors import UserError

__all__ = ["AttackResult", "UserError", "evaluate", "load"]
__version__ = "0.1.0"
_HOMES = {
    "load": "fastpeer.api", "evaluate": "fastpeer.api", "AttackResult": "fastpeer.api",
    "UserError": "fastpeer.errors",
}  # fmt: skip
"""What programs use, and the modules that are imported when they do: PyTorch takes a second."""

if not os.path.isdir(os.path.join(os.path.dirname(__file__), "kernels")):
    # In the source tree, kernels/ and data_prep/ lie beside this folder; an installation puts them into it.
    __path__.append(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))


def __getattr__(name: str) -> object:
    if name not in _HOMES:
        raise AttributeError(f"module fastpeer has no attribute {name!r}")
    return getattr(import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *_HOMES})
