"""Errors that the user can fix, and helpers for one-line messages."""

from unicodedata import category

CONTROL = ("Cc", "Cf", "Cs", "Zl", "Zp")
"""Categories of what steers: controls, formats such as the direction of writing, surrogates, new lines."""


class UserError(Exception):
    """An error that the user can fix; its message is one line: what is wrong, and what to do.

    The command line prints the message without a traceback and exits with `exit_code`.
    """

    exit_code = 2


class Interrupted(UserError):
    """The user stopped the command; its message says how to continue."""

    exit_code = 130


def one_line(text: object) -> str:
    """Join the lines of a text, such as another library's message, into one."""
    return " ".join(str(text).split())


def counted(count: int, what: str) -> str:
    """Return "1 image" or "3 images" for a count and "image"."""
    return f"{count} {what}" if count == 1 else f"{count} {what}s"


def printable(text: object) -> str:
    """Return a text with its control characters spelled out: a name in a file may not steer a terminal."""
    return "".join(
        letter.encode("unicode_escape").decode("ascii") if category(letter) in CONTROL else letter
        for letter in str(text)
    )


def shown(value: object, longest: int = 80) -> str:
    """Return how a value is written, in at most `longest` characters; it may come from any file."""
    try:
        text = repr(value)
    except (ValueError, RecursionError):  # An integer of thousands of digits, or lists in lists.
        return "a value too long to show"
    return text if len(text) <= longest else f"{text[:longest]}…"


def brief(error: BaseException, longest: int = 160) -> str:
    """Return an error's message in one line of at most `longest` characters; torch's can be pages long."""
    text = one_line(error)
    return text if len(text) <= longest else f"{text[:longest]}…"
