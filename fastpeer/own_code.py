"""Importing the user's own modules, from the current folder or Python's path: the one place where code runs.

A command imports what stands on its own line. What only a file names, such as the settings of a run that came
from elsewhere, is imported with --trust alone.
"""

import importlib
import sys
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from pathlib import Path
from types import ModuleType

from fastpeer.errors import UserError, brief


class Untrusted(UserError):
    """A file names code that would run, and nobody has asked for that."""


_TRUSTED: ContextVar[Collection[str] | None] = ContextVar("trusted", default=None)
"""What may be imported; None: anything, for programs that call fastpeer and name it themselves."""


@contextmanager
def trusting(names: Collection[str] | None) -> Iterator[None]:
    """Import nothing but what these names stand for; None: anything that is named anywhere.

    A context variable, not an argument: whatever comes to import code asks here, through however many hands
    the name went.
    """
    token = _TRUSTED.set(names)
    try:
        yield
    finally:
        _TRUSTED.reset(token)


def import_own(module: str, kind: str, name: str) -> ModuleType:
    """Import a module of the user's.

    Args:
        module: its dotted name.
        kind: what it is imported for, such as network; for errors.
        name: what the user calls that, such as `nets.small:Net`.

    Raises:
        UserError: there is no such module, or importing it raises an error.
        Untrusted: a file names it, and the command line neither does nor trusts it.
    """
    refuse_untrusted(kind, name)
    what = f"{kind} {name}"
    with current_folder_first():
        try:
            return importlib.import_module(module)
        except (Exception, SystemExit) as error:  # The user's own code may raise anything.
            raise UserError(f"{what}: {module} cannot be imported ({error_text(error)})") from None


def refuse_untrusted(kind: str, name: str) -> None:
    """Raise `Untrusted` for code that a file names, and the command line neither names nor trusts.

    Args:
        kind: what it is, such as network; for the error.
        name: what the user calls it, such as `nets.small:Net`.
    """
    trusted = _TRUSTED.get()
    if trusted is not None and name not in trusted:
        raise Untrusted(
            f"{kind} {name}: a file names it, and importing it runs code:"
            " pass --trust if you know whose code it is"
        )


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
