"""What fastpeer logs, as lines for whoever sits at the command line."""

import logging
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager

from rich.console import Console

from fastpeer.printing import print_line, print_warning


class _ConsoleHandler(logging.Handler):
    """Prints above the bars that the console shows: broken between words on a terminal, whole in a file.

    rich's own handler draws each record as a table, which cuts and pads it to a width that a file has not.
    """

    def __init__(self, console: Console) -> None:
        super().__init__()
        self.console = console

    def emit(self, record: logging.LogRecord) -> None:
        say = print_warning if record.levelno >= logging.WARNING else print_line
        say(self.console, self.format(record))


@contextmanager
def log_to(console: Console, level: int = logging.INFO, more: Sequence[str] = ()) -> Iterator[None]:
    """Print what fastpeer logs meanwhile, from `level` on; of a quiet console only warnings.

    Args:
        console: where to.
        level: the lowest that is printed.
        more: modules of which everything from INFO on is printed.
    """
    logger, handler = logging.getLogger("fastpeer"), _ConsoleHandler(console)
    levels = {logger: level, **{logging.getLogger(name): logging.INFO for name in more}}
    former = {changed: changed.level for changed in levels}
    logger.addHandler(handler)
    _set_levels(levels)
    try:
        yield
    finally:
        logger.removeHandler(handler)
        _set_levels(former)


def _set_levels(levels: Mapping[logging.Logger, int]) -> None:
    for logger, level in levels.items():
        logger.setLevel(level)
