"""The one exception that a person is meant to read."""


class UserError(Exception):
    """Something the user can fix; its text is one line that says what is wrong and what to do.

    The command line prints it without a traceback and exits with `exit_code`.
    """

    exit_code = 2


class Interrupted(UserError):
    """The user stopped it; its text says how to go on."""

    exit_code = 130


def one_line(text: object) -> str:
    """Fold any text, such as another library's message, onto a single line."""
    return " ".join(str(text).split())


def brief(error: BaseException, longest: int = 160) -> str:
    """Return the beginning of an error's text, which in libraries may be hundreds of lines."""
    text = one_line(error)
    return text if len(text) <= longest else f"{text[:longest]}…"
