"""Modules that the user wrote, found from the current folder or wherever Python looks."""

import importlib
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType

from fastpeer.errors import UserError, brief


def import_own(module: str, what: str) -> ModuleType:
    """Import a module by its dotted name; `what` wants it, for the error.

    Raises:
        UserError: it is not there, or raises while it is imported.
    """
    with current_folder_first():
        try:
            return importlib.import_module(module)
        except (Exception, SystemExit) as error:  # The user's own code may raise anything.
            raise UserError(f"{what}: {module} cannot be imported ({told(error)})") from None


@contextmanager
def current_folder_first() -> Iterator[None]:
    """Let Python look for modules in the current folder before it looks elsewhere."""
    folder = str(Path.cwd())
    sys.path.insert(0, folder)
    importlib.invalidate_caches()
    try:
        yield
    finally:
        if folder in sys.path:  # What was imported may have put it right itself.
            sys.path.remove(folder)


def told(error: BaseException) -> str:
    """Say in one line what kind of error foreign code raised, and what it says."""
    return f"{type(error).__name__}: {brief(error)}"
