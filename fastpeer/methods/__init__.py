"""What to learn. Every module in this package but `table` and `check` is a method, and fills in a table.

`table` has the words for it, `check` tells what is wrong with one.

A method's module holds `Loss`, a dataclass of its own settings, and `table(loss)`, which returns its
`Method`. Nothing has to be registered: the module's name, with hyphens, is the method's. A method of your
own may lie in any module that can be imported, and goes by its dotted name.
"""

import importlib
import pkgutil
from types import ModuleType

from fastpeer.errors import UserError
from fastpeer.methods.check import mistakes
from fastpeer.methods.table import LossSettings, Method
from fastpeer.own_code import error_text, import_own
from fastpeer.suggestions import similar


def method_names() -> list[str]:
    """Return the names of the methods that come with fastpeer."""
    modules = {module.name for module in pkgutil.iter_modules(__path__)} - {"table", "check"}
    return sorted(name.replace("_", "-") for name in modules)


def loss_settings(name: str) -> type[LossSettings]:
    """Return the class of a method's own settings.

    Raises:
        UserError: there is no such method, or it is not one.
    """
    found = getattr(_module(name), "Loss", None)
    if not (isinstance(found, type) and issubclass(found, LossSettings)):
        raise UserError(f"the method {name} has no class Loss derived from LossSettings: see docs/methods.md")
    return found


def build_table(name: str, loss: LossSettings) -> Method:
    """Fill in a method's table.

    Raises:
        UserError: there is no such method, the settings are another method's, or its table is none, or
            cannot be carried out.
    """
    if not isinstance(loss, loss_settings(name)):
        raise UserError(f"the settings in [loss] are not those of the method {name}")
    table = getattr(_module(name), "table", None)
    if not callable(table):
        raise UserError(f"the method {name} has no function table(loss) that returns a Method")
    try:
        made = table(loss)
        returns = isinstance(made, Method)
        found = list(mistakes(made)) if returns else ["its function table(loss) returns no Method"]
    except Exception as error:  # The user's own code may raise anything, and hand over anything.
        raise UserError(f"the table of the method {name} cannot be filled in ({error_text(error)})") from None
    if found:
        raise UserError(f"the table of the method {name} cannot be carried out: {found[0]}")
    filled: Method = made
    return filled


def default_loss(name: str) -> LossSettings:
    """Return a method's own settings as it has them by default.

    Raises:
        UserError: there is no such method, or one of its settings has no default.
    """
    try:
        return loss_settings(name)()
    except (TypeError, ValueError) as error:
        raise UserError(
            f"the class Loss of the method {name} must have defaults ({error_text(error)})"
        ) from None


def _module(name: str) -> ModuleType:
    if name in method_names():
        return importlib.import_module(f"{__name__}.{name.replace('-', '_')}")
    if "." not in name:
        meant = name.lower().replace("_", "-")
        close = similar(meant, method_names(), likeness=0.4)
        listed = f"the {'nearest' if close else 'methods'} are {', '.join(close or method_names())}"
        raise UserError(f"no method {name!r}; {listed}; your own is package.module")
    return import_own(name, "method", name)


__all__ = ["LossSettings", "Method", "build_table", "default_loss", "loss_settings", "method_names"]
