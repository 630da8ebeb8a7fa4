"""Triton's interpreter under a NumPy that is newer than it."""

from typing import Any

import triton
from triton.runtime import interpreter


def take_arrays_of_one_as_bounds() -> None:
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
