"""Command lines of fastpeer in this process, and that they end in a line at worst."""

from __future__ import annotations

import contextlib
import io
import os
from pathlib import Path

from fastpeer.cli.main import main
from fastpeer.errors import UserError, printable


def command(words: list[str], folder: Path) -> None:
    """Run a command line in a folder.

    Raises:
        UserError: it was refused, in one line.
        AssertionError: it said more, or something that a terminal would obey.
    """
    told, complaint, before = io.StringIO(), io.StringIO(), Path.cwd()
    os.chdir(folder)
    try:
        with contextlib.redirect_stdout(told), contextlib.redirect_stderr(complaint):
            code = main(words)
    finally:
        os.chdir(before)
    line = complaint.getvalue()
    assert code in (0, 1, 2), code
    assert line.count("\n") <= (code != 0), line
    for text in (*told.getvalue().split("\n"), line.rstrip("\n")):
        assert printable(text) == text, text
    if code:
        raise UserError(line)
