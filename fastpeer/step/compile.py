"""torch.compile for batches of one size, which falls back to eager code where compiling fails."""

import logging
import math
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
OUT_OF_TIME = "compiling took longer"
"""How the message begins of a function that runs uncompiled because of the time."""
MAX_SECONDS = 600.0
"""Default of the seconds that one function may take to compile."""


log = logging.getLogger(__name__)


class CompilingTimedOut(Exception):
    """Compiling a function took longer than it may."""


class Compiler:
    """Compiles functions for full batches; any other batch size runs uncompiled.

    An epoch's last, smaller batch comes once an epoch, and compiling for it takes a minute. Replayed from a
    CUDA graph, it is only a little slower uncompiled.

    Args:
        batch: images of a full batch; 0: compile for every size.
        longest: seconds that one function may take to compile.

    Attributes:
        deadline: time by `time.perf_counter` after which nothing more is compiled.
        names: of the functions that it was given.
        seconds: by function name, how long first calls took, nearly all of it compiling.
    """

    def __init__(self, batch: int = 0, longest: float = MAX_SECONDS) -> None:
        self.batch = batch
        self.longest = longest
        self.deadline = math.inf
        self.names: list[str] = []
        self.seconds: dict[str, float] = {}
        self._reported: dict[str, float] = {}
        _configure()

    def __call__(
        self,
        function: Callable[Arguments, Result],
        name: str,
        eager: Callable[Arguments, Result] | None = None,
    ) -> Callable[Arguments, Result]:
        """Return the compiled form of a function.

        Where compiling fails or takes too long, the log says so and `eager` runs from then on.

        Args:
            function: of tensors, without data-dependent control flow; its first argument is a batch, or a
                mapping of batches of one size.
            name: for the log.
            eager: runs where the compiled code cannot be used; None: the function itself.
        """
        self.names.append(name)
        return _Compiled(self, function, name, eager or function)

    def news(self) -> str:
        """Return a line about what was compiled since the last call, and how long it took; "" for nothing."""
        fresh = {
            name: seconds - self._reported.get(name, 0.0)
            for name, seconds in self.seconds.items()
            if seconds != self._reported.get(name)
        }
        self._reported = dict(self.seconds)
        each = ", ".join(f"{name} {seconds:.0f} s" for name, seconds in fresh.items())
        return f"engine.compile: {sum(fresh.values()):.0f} s for {each}" if fresh else ""


class _Compiled(Generic[Arguments, Result]):
    """A function that runs compiled on full batches until compiling fails."""

    def __init__(
        self,
        compiler: Compiler,
        function: Callable[Arguments, Result],
        name: str,
        eager: Callable[Arguments, Result],
    ) -> None:
        self.compiler = compiler
        self.name = name
        self.eager = eager
        self.fast = torch.compile(function, dynamic=False)
        self._usable = True
        self._compiled_for: set[object] = set()

    def __call__(self, *args: Arguments.args, **kwargs: Arguments.kwargs) -> Result:
        shapes = _shapes(args)
        if self._usable and self.compiler.batch in (0, shapes[0][0][0]):
            # What torch.compile guards on: for a new combination, the call compiles anew.
            key = (shapes, torch.is_grad_enabled(), torch.is_autocast_enabled(_device_type(args)))
            try:
                if key in self._compiled_for:
                    return self.fast(*args, **kwargs)
                return self._timed_first_call(key, args, kwargs)
            except torch.OutOfMemoryError:
                raise
            except Exception as error:  # Whatever dynamo, Inductor or the C++ compiler raise.
                self._usable = False
                log.warning("engine.compile: %s runs uncompiled (%s)", self.name, brief(error))
        return self.eager(*args, **kwargs)

    def _timed_first_call(self, key: object, args: Any, kwargs: Any) -> Result:
        began = time.perf_counter()
        limit = min(self.compiler.longest, self.compiler.deadline - began)
        if limit <= 0:
            raise CompilingTimedOut(f"{OUT_OF_TIME} than there is time")
        with _time_limit(limit):
            result = self.fast(*args, **kwargs)
        self._compiled_for.add(key)
        seconds = self.compiler.seconds
        seconds[self.name] = seconds.get(self.name, 0.0) + time.perf_counter() - began
        return result


def _tensors(args: tuple[Any, ...]) -> Iterator[Tensor]:
    """Yield the tensors among the arguments, and those in mappings among them."""
    for arg in args:
        values = arg.values() if isinstance(arg, Mapping) else (arg,)
        yield from (value for value in values if isinstance(value, Tensor))


def _shapes(args: tuple[Any, ...]) -> tuple[tuple[torch.Size, torch.dtype], ...]:
    return tuple((tensor.shape, tensor.dtype) for tensor in _tensors(args))


def _device_type(args: tuple[Any, ...]) -> str:
    return next(_tensors(args)).device.type


@contextmanager
def _time_limit(seconds: float) -> Iterator[None]:
    """Raise CompilingTimedOut in the block after a time; in the main thread only, which gets the signals."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def on_alarm(number: int, frame: FrameType | None) -> None:
        raise CompilingTimedOut(f"{OUT_OF_TIME} than {seconds:.3g} s")

    former = signal.signal(signal.SIGALRM, on_alarm)
    # Repeated every 5 s: the exception is lost if the alarm happens to interrupt a destructor.
    signal.setitimer(signal.ITIMER_REAL, seconds, 5.0)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, former)


def _configure() -> None:
    # Importing these takes a second, which runs without compiling should not wait for.
    from torch._dynamo import config as dynamo
    from torch._functorch import config as functorch

    if hasattr(functorch, "force_non_lazy_backward_lowering"):
        # Compile the backward together with the forward: a failure then falls back to eager code before
        # anything has run. By default it would appear in backward(), outside of this module.
        functorch.force_non_lazy_backward_lowering = True
    # Student, averaged student and peer, in training and selection, share code but not modules or modes.
    # Beyond the default limit of 8 variants, dynamo would run the code uncompiled without an error.
    dynamo.recompile_limit = max(64, dynamo.recompile_limit)
