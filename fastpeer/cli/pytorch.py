"""PyTorch, imported when a command line has been read and found to be right."""

import gc
import sys
from importlib import import_module


def import_pytorch() -> None:
    """Import PyTorch before what needs it, with the garbage collector at rest.

    The import makes hundreds of thousands of objects that stay: looking through them again and again takes a
    tenth of its time, and at a later collection they need not be looked at either.
    """
    if "torch" in sys.modules:
        return
    collecting = gc.isenabled()
    gc.disable()
    try:
        import_module("torch")
    finally:
        if collecting:
            gc.enable()
    gc.freeze()
