"""torch.compile for batches of one size, with a way back where it fails."""

import logging
import signal
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from types import FrameType
from typing import Any, Generic, ParamSpec, TypeVar

import torch
from torch import Tensor

from fastpeer.errors import brief

Arguments = ParamSpec("Arguments")
Result = TypeVar("Result")
LONGEST = 600.0
"""Seconds that one function may take to compile."""


log = logging.getLogger(__name__)


class CompilingTakesTooLong(Exception):
    """The time is up."""


class Compiler:
    """Compiles functions for full batches; any other batch size runs as it is.

    An epoch's last batch comes once an epoch, and compiling for it takes a minute. Replayed from a CUDA graph
    it is a little slower than a full one, and no more.

    Args:
        batch: images of a full batch; 0: compile for every size.
        longest: seconds that one function may take to compile.

    Attributes:
        seconds: what the first call of each function took, nearly all of it compiling, by its name.
    """

    def __init__(self, batch: int = 0, longest: float = LONGEST) -> None:
        self.batch = batch
        self.longest = longest
        self.seconds: dict[str, float] = {}
        self._told: dict[str, float] = {}
        _configure()

    def __call__(
        self,
        function: Callable[Arguments, Result],
        what: str,
        eager: Callable[Arguments, Result] | None = None,
    ) -> Callable[Arguments, Result]:
        """Return a function, compiled; its first argument is a batch, or several of one size by name.

        Args:
            function: without data-dependent control flow.
            what: its name.
            eager: runs where it is not compiled; None: the function as it is.
        """
        return _Compiled(self, function, what, eager or function)

    def news(self) -> str:
        """Say in a line what was compiled since the last call of this, and how long it took; or nothing."""
        fresh = {
            what: seconds - self._told.get(what, 0.0)
            for what, seconds in self.seconds.items()
            if seconds != self._told.get(what)
        }
        self._told = dict(self.seconds)
        each = ", ".join(f"{what} {seconds:.0f} s" for what, seconds in fresh.items())
        return f"engine.compile: {sum(fresh.values()):.0f} s for {each}" if fresh else ""


class _Compiled(Generic[Arguments, Result]):
    """Runs compiled as long as that works."""

    def __init__(
        self,
        compiler: Compiler,
        function: Callable[Arguments, Result],
        what: str,
        eager: Callable[Arguments, Result],
    ) -> None:
        self.compiler = compiler
        self.what = what
        self.eager = eager
        self.fast = torch.compile(function, dynamic=False)
        self.works = True
        self._known: set[object] = set()

    def __call__(self, *args: Arguments.args, **kwargs: Arguments.kwargs) -> Result:
        shapes = _shapes(args)
        if self.works and self.compiler.batch in (0, shapes[0][0][0]):
            key = (shapes, torch.is_grad_enabled(), torch.is_autocast_enabled(_device_type(args)))
            try:
                return self.fast(*args, **kwargs) if key in self._known else self._first(key, args, kwargs)
            except torch.OutOfMemoryError:
                raise
            except Exception as error:  # Whatever dynamo, Inductor or the C++ compiler run into.
                self.works = False
                log.warning("engine.compile: %s runs uncompiled (%s)", self.what, brief(error))
        return self.eager(*args, **kwargs)

    def _first(self, key: object, args: Any, kwargs: Any) -> Result:
        began = time.perf_counter()
        with _at_most(self.compiler.longest):
            result = self.fast(*args, **kwargs)
        self._known.add(key)
        seconds = self.compiler.seconds
        seconds[self.what] = seconds.get(self.what, 0.0) + time.perf_counter() - began
        return result


def _tensors(args: tuple[Any, ...]) -> Iterator[Tensor]:
    """Yield the tensors among the arguments."""
    for arg in args:
        several = arg.values() if isinstance(arg, Mapping) else (arg,)
        yield from (one for one in several if isinstance(one, Tensor))


def _shapes(args: tuple[Any, ...]) -> tuple[tuple[torch.Size, torch.dtype], ...]:
    return tuple((one.shape, one.dtype) for one in _tensors(args))


def _device_type(args: tuple[Any, ...]) -> str:
    return next(_tensors(args)).device.type


@contextmanager
def _at_most(seconds: float) -> Iterator[None]:
    """Interrupt what takes longer; other threads than the main one cannot be interrupted."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def ring(number: int, frame: FrameType | None) -> None:
        raise CompilingTakesTooLong(f"compiling took longer than {seconds:g} s")

    former = signal.signal(signal.SIGALRM, ring)
    # Again and again: an exception may be swallowed where it happens to be raised, as in a destructor.
    signal.setitimer(signal.ITIMER_REAL, seconds, 5.0)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, former)


def _configure() -> None:
    # These take a second, which runs without compiling need not wait for.
    from torch._dynamo import config as dynamo
    from torch._functorch import config as functorch

    if hasattr(functorch, "force_non_lazy_backward_lowering"):
        # The way back is compiled with the way forward, so that a failure comes before anything has run.
        functorch.force_non_lazy_backward_lowering = True
    # Student, averaged student and peer, in training and selection: beyond the default of 8, what differs in
    # these would run uncompiled without a word.
    dynamo.recompile_limit = max(64, dynamo.recompile_limit)
