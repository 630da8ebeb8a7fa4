"""Triton's interpreter, made more like a GPU, and to work under a NumPy that is newer than it."""

from typing import Any

import numpy as np
import triton
from triton.runtime import interpreter


def adapt_interpreter() -> None:
    """Change the interpreter of this process; call it once, before a kernel is launched."""
    _take_arrays_of_one_as_bounds()
    _sum_by_halves()


def _sum_by_halves() -> None:
    """Let tl.sum add up in a tree, as the threads of a GPU do.

    NumPy adds the rows of a tile one after the other, whose error grows with their number.
    """

    def by_halves(self: Any, tile: Any) -> Any:
        values, axis = tile.handle.data, self.axis
        values = values.reshape(-1) if axis is None else np.moveaxis(values, axis, 0)
        while len(values) > 1:
            values = values[: len(values) // 2] + values[len(values) // 2 :]
        total = values[0]
        if self.keep_dims:
            total = np.expand_dims(total, tuple(range(tile.handle.data.ndim)) if axis is None else axis)
        return self.to_tensor(total, tile.dtype)

    interpreter.ReduceOps.sum = by_halves


def _take_arrays_of_one_as_bounds() -> None:
    """Let loops in interpreted kernels end at a number that was computed or passed.

    Triton 3.6 keeps it as an array of shape (1,), of which NumPy 2.4 makes no number anymore. Triton 3.9
    squeezes it, as is done here. Compiled kernels are not concerned.
    """
    if tuple(map(int, triton.__version__.split(".")[:2])) >= (3, 9):
        return
    patch_tensor = interpreter._patch_lang_tensor

    def patch_and_squeeze(tensor: Any, *scope: Any) -> None:
        patch_tensor(tensor, *scope)
        tensor.__index__ = lambda self: int(self.handle.data.squeeze())

    interpreter._patch_lang_tensor = patch_and_squeeze
