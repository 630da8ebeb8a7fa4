"""Ctrl-C, SIGTERM and SIGHUP: in training they request a stop, elsewhere they end the command."""

import os
import signal
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from types import FrameType
from typing import Any, TypeVar

Item = TypeVar("Item")
ENDING = (signal.SIGTERM, signal.SIGHUP)
"""Sent when a machine shuts down, and when a terminal or connection is closed."""


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

    def checked(self, batches: Iterable[Item]) -> Iterator[Item]:
        """Yield batches; before each, raise `Stopped` if a stop was requested."""
        for batch in batches:
            self.check()
            yield batch


@contextmanager
def interruptible() -> Iterator[None]:
    """Let Ctrl-C end what runs within, even where a library swallows the KeyboardInterrupt.

    numba does so while compiling FFCV's pipelines: of an exception in one of its callbacks Python only prints
    a traceback, and the training would continue. Must be called in the main thread.
    """
    interrupted = False

    def handle(number: int, frame: FrameType | None) -> None:
        nonlocal interrupted
        interrupted = True
        raise KeyboardInterrupt

    def report(swallowed: "sys.UnraisableHookArgs") -> Any:
        return None if swallowed.exc_type is KeyboardInterrupt else unraisable(swallowed)

    previous, unraisable = signal.signal(signal.SIGINT, handle), sys.unraisablehook
    sys.unraisablehook = report
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, previous)
        sys.unraisablehook = unraisable
    if interrupted:
        raise KeyboardInterrupt


@contextmanager
def stopping_on_signals() -> Iterator[StopRequest]:
    """Turn the first SIGINT, SIGTERM or SIGHUP into a stop request; a second SIGINT interrupts immediately.

    Must be called in the main thread; the previous handlers are restored at the end.
    """
    stop, terminals = StopRequest(), [output for output in (1, 2) if os.isatty(output)]

    def handle(number: int, frame: FrameType | None) -> None:
        _let_go([terminal for terminal in terminals if not os.isatty(terminal)])
        # Further ones of the others change nothing: the checkpoint is still to be written.
        if stop.requested and number == signal.SIGINT:
            raise KeyboardInterrupt
        stop.requested = True

    with _handled((signal.SIGINT, *ENDING), handle):
        yield stop


def _let_go(terminals: Sequence[int]) -> None:
    """Let what is printed to closed terminals go nowhere: it would end the run before it is saved."""
    for terminal in terminals:
        with open(os.devnull, "wb") as nowhere:
            os.dup2(nowhere.fileno(), terminal)


@contextmanager
def ending_on_signals() -> Iterator[None]:
    """Let SIGTERM and SIGHUP end what runs within as Ctrl-C does, so that it cleans up behind itself.

    Must be called in the main thread; the previous handlers are restored at the end.
    """

    def handle(number: int, frame: FrameType | None) -> None:
        raise KeyboardInterrupt

    with _handled(ENDING, handle):
        yield


@contextmanager
def _handled(numbers: Sequence[int], handle: Callable[[int, FrameType | None], None]) -> Iterator[None]:
    # What nohup has made the process ignore stays ignored.
    unwanted = signal.SIGHUP if signal.getsignal(signal.SIGHUP) == signal.SIG_IGN else None
    wanted = [number for number in numbers if number != unwanted]
    previous = {number: signal.signal(number, handle) for number in wanted}
    try:
        yield
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)
