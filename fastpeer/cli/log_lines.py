"""What fastpeer logs, as lines for whoever sits at the command line."""

import logging
from collections.abc import Iterator
from contextlib import contextmanager

from rich.console import Console

from fastpeer.printing import print_line


class _ConsoleHandler(logging.Handler):
    """Prints above the bars that the console shows: broken between words on a terminal, whole in a file.

    rich's own handler draws each record as a table, which cuts and pads it to a width that a file has not.
    """

    def __init__(self, console: Console) -> None:
        super().__init__()
        self.console = console

    def emit(self, record: logging.LogRecord) -> None:
        print_line(self.console, self.format(record))


@contextmanager
def log_to(console: Console, level: int = logging.INFO) -> Iterator[None]:
    """Print what fastpeer logs meanwhile, from `level` on; a quiet console prints nothing."""
    logger, handler = logging.getLogger("fastpeer"), _ConsoleHandler(console)
    former = logger.level
    logger.addHandler(handler)
    logger.setLevel(level)
    try:
        yield
    finally:
        logger.removeHandler(handler)
        logger.setLevel(former)
