"""Ctrl-C and SIGTERM as a request to stop at the next safe place."""

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType


class Stopped(Exception):
    """A stop was requested; the state is consistent and can be saved."""


class StopRequest:
    """Whether the run is to stop; checked between two steps and between two evaluated batches.

    Attributes:
        requested: set by a signal.
    """

    def __init__(self) -> None:
        self.requested = False

    def check(self) -> None:
        """Raise `Stopped` if a stop was requested."""
        if self.requested:
            raise Stopped


@contextmanager
def stopping_on_signals() -> Iterator[StopRequest]:
    """Turn the first SIGINT or SIGTERM into a stop request; a second SIGINT interrupts immediately.

    Must be called in the main thread; the previous handlers are restored at the end.
    """
    stop = StopRequest()

    def handle(number: int, frame: FrameType | None) -> None:
        # Further SIGTERMs change nothing: the checkpoint is still to be written.
        if stop.requested and number == signal.SIGINT:
            raise KeyboardInterrupt
        stop.requested = True

    previous = {number: signal.signal(number, handle) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield stop
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)
