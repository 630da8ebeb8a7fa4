"""Importing the user's own modules, from the current folder or Python's path."""

import importlib
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType

from fastpeer.errors import UserError, brief


def import_own(module: str, what: str) -> ModuleType:
    """Import a module of the user's.

    Args:
        module: its dotted name.
        what: what it is imported for, named in the error.

    Raises:
        UserError: there is no such module, or importing it raises an error.
    """
    with current_folder_first():
        try:
            return importlib.import_module(module)
        except (Exception, SystemExit) as error:  # The user's own code may raise anything.
            raise UserError(f"{what}: {module} cannot be imported ({error_text(error)})") from None


@contextmanager
def current_folder_first() -> Iterator[None]:
    """Put the current folder first on Python's path."""
    folder = str(Path.cwd())
    sys.path.insert(0, folder)
    # Finders cache folder listings: a module written a moment ago would be missed.
    importlib.invalidate_caches()
    try:
        yield
    finally:
        if folder in sys.path:  # The imported module may have changed the path itself.
            sys.path.remove(folder)


def error_text(error: BaseException) -> str:
    """Return the type and message of an error in one line, for errors raised by the user's code."""
    return f"{type(error).__name__}: {brief(error)}"
