"""Ctrl-C before the training begins."""

import os
import signal

import pytest

from fastpeer.training.signals import interruptible


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


def test_what_was_set_is_put_back():
    before = signal.getsignal(signal.SIGINT)
    with interruptible():
        pass
    assert signal.getsignal(signal.SIGINT) is before
