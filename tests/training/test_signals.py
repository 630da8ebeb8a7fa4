"""Ctrl-C before the training begins."""

import os
import pty
import signal
import time

import pytest

from fastpeer.training.signals import Stopped, ending_on_signals, interruptible, stopping_on_signals


class Swallowing:
    def __del__(self):
        os.kill(os.getpid(), signal.SIGINT)


def test_an_interrupt_that_a_library_swallows_still_ends_the_command(capfd):
    reached = []

    @interruptible()
    def opening_data():
        # An exception in a finaliser goes nowhere, like one in a callback that numba calls.
        Swallowing()
        reached.append("the end")

    with pytest.raises(KeyboardInterrupt):
        opening_data()
    assert reached
    assert capfd.readouterr().err == ""


@pytest.mark.parametrize("number", [signal.SIGHUP, signal.SIGTERM, signal.SIGINT])
def test_each_of_these_requests_a_stop(number):
    with stopping_on_signals() as stop:
        stop.check()
        signal.raise_signal(number)
        with pytest.raises(Stopped):
            stop.check()


def test_what_nohup_ignores_stays_ignored():
    former = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with stopping_on_signals() as stop, ending_on_signals():
            signal.raise_signal(signal.SIGHUP)
            stop.check()
    finally:
        signal.signal(signal.SIGHUP, former)


def test_a_terminal_that_is_closed_does_not_end_what_is_to_be_saved():
    child, terminal = pty.fork()
    if not child:
        with stopping_on_signals() as stop:
            os.write(1, b"ready")
            while not stop.requested:
                time.sleep(0.01)
            os.write(1, b"nobody reads this")
        os._exit(7)
    assert os.read(terminal, 5) == b"ready"
    os.close(terminal)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 7


def test_what_was_set_is_put_back():
    before = signal.getsignal(signal.SIGINT)
    with interruptible():
        pass
    assert signal.getsignal(signal.SIGINT) is before
