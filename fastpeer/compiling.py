"""torch.compile, with a way back where it fails."""

from collections.abc import Callable
from typing import ParamSpec, TypeVar

import torch

from fastpeer.errors import brief

Arguments = ParamSpec("Arguments")
Result = TypeVar("Result")


def compiled(
    function: Callable[Arguments, Result],
    what: str,
    say: Callable[[str], None],
    eager: Callable[Arguments, Result] | None = None,
) -> Callable[Arguments, Result]:
    """Compile a function for each shape that it meets.

    Args:
        function: without data-dependent control flow.
        what: its name in the line about a failure.
        say: takes that line; from then on `eager` runs.
        eager: None: the function as it is.
    """
    # These take a second, which runs without compiling need not wait for.
    from torch._dynamo import config as dynamo
    from torch._functorch import config as functorch

    if hasattr(functorch, "force_non_lazy_backward_lowering"):
        # The way back is compiled with the way forward, so that a failure comes before anything has run.
        functorch.force_non_lazy_backward_lowering = True
    # Student, averaged student and peer, in training and selection, with their last batches: beyond the
    # default of 8, what differs in these would run uncompiled without a word.
    dynamo.recompile_limit = max(64, dynamo.recompile_limit)
    fast = torch.compile(function, dynamic=False)
    works = True

    def run(*args: Arguments.args, **kwargs: Arguments.kwargs) -> Result:
        nonlocal works
        if works:
            try:
                return fast(*args, **kwargs)
            except torch.OutOfMemoryError:
                raise
            except Exception as error:  # Whatever dynamo, Inductor or the C++ compiler run into.
                works = False
                say(f"engine.compile: {what} runs uncompiled ({brief(error)})")
        return (eager or function)(*args, **kwargs)

    return run
