"""Errors that the user can fix, and helpers for one-line messages."""


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


def brief(error: BaseException, longest: int = 160) -> str:
    """Return an error's message in one line of at most `longest` characters; torch's can be pages long."""
    text = one_line(error)
    return text if len(text) <= longest else f"{text[:longest]}…"
