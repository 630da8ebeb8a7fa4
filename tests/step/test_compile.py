"""Compiling for full batches alone, within a time, and with a way back."""

import re
import time

import pytest
import torch

from fastpeer.step.compile import Compiler

pytestmark = pytest.mark.usefixtures("nothing_logged")

FULL, TAIL = torch.ones(4, 2), torch.ones(3, 2)


@pytest.fixture
def compiled_calls(monkeypatch):
    """Stand in for torch.compile: run the function as it is, and note what it was called with."""
    calls = []

    def compile_(function, dynamic):
        def fast(*args):
            calls.append(args)
            return function(*args)

        return fast

    monkeypatch.setattr("torch.compile", compile_)
    return calls


def test_only_full_batches_run_compiled(compiled_calls):
    compiler = Compiler(batch=4)
    run = compiler(lambda x: x + 1, "the sum", eager=lambda x: x + 1.0)
    for batch in (FULL, TAIL, FULL, TAIL):
        assert torch.equal(run(batch), batch + 1)
    assert [len(args[0]) for args in compiled_calls] == [4, 4]
    assert list(compiler.seconds) == ["the sum"]


def test_a_batch_may_be_several_tensors_by_name(compiled_calls):
    run = Compiler(batch=4)(lambda inputs: sum(inputs.values()), "the sum")
    for batch in (FULL, TAIL):
        assert torch.equal(run({"clean": batch, "adversarial": batch}), 2 * batch)
    assert len(compiled_calls) == 1


def test_without_a_full_batch_every_size_is_compiled(compiled_calls):
    run = Compiler()(lambda x: x + 1, "the sum")
    for batch in (FULL, TAIL):
        run(batch)
    assert len(compiled_calls) == 2


def failing(error):
    def function(x):
        raise error

    return function


@pytest.mark.usefixtures("compiled_calls")
def test_what_cannot_be_compiled_runs_as_it_is_after_one_line(logged):
    run = Compiler()(failing(RuntimeError("no\nsuch kernel")), "the sum", eager=lambda x: x + 1)
    for _ in range(2):
        assert torch.equal(run(FULL), FULL + 1)
    assert logged == ["engine.compile: the sum runs uncompiled (no such kernel)"]


@pytest.mark.usefixtures("compiled_calls")
def test_a_full_memory_is_the_callers():
    run = Compiler()(failing(torch.OutOfMemoryError()), "the sum", eager=lambda x: x + 1)
    with pytest.raises(torch.OutOfMemoryError):
        run(FULL)


@pytest.mark.usefixtures("compiled_calls")
def test_what_takes_too_long_to_compile_is_given_up(logged):
    def slow(x):
        time.sleep(20)

    began = time.monotonic()
    run = Compiler(longest=0.1)(slow, "the sum", eager=lambda x: x + 1)
    for _ in range(2):
        assert torch.equal(run(FULL), FULL + 1)
    assert time.monotonic() - began < 10
    assert logged == ["engine.compile: the sum runs uncompiled (compiling took longer than 0.1 s)"]


@pytest.mark.usefixtures("compiled_calls")
def test_after_the_deadline_nothing_is_compiled(logged):
    compiler = Compiler()
    compiler.deadline = time.perf_counter() - 1
    run = compiler(failing(AssertionError), "the sum", eager=lambda x: x + 1)
    for _ in range(2):
        assert torch.equal(run(FULL), FULL + 1)
    assert logged == ["engine.compile: the sum runs uncompiled (compiling took longer than there is time)"]


def test_what_is_really_compiled_says_how_long_it_took():
    compiler = Compiler(batch=4)
    run = compiler(lambda x: x * 2 + 1, "the line")
    for batch in (FULL, TAIL, FULL):
        assert torch.equal(run(batch), batch * 2 + 1)
    assert compiler.seconds["the line"] > 0
    assert re.fullmatch(r"engine\.compile: \d+ s for the line \d+ s", compiler.news())
    assert compiler.news() == ""
