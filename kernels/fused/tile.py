"""How kernels on logits share out the rows: a program has some, each whole."""

import triton
import triton.language as tl
from torch import Tensor

from fastpeer.kernels.refusal import KernelRefusal

MAX_CLASSES = 1024
_TILE = 256
"""Logits of a warp, and in one program, where a row is not longer: eight for each thread."""


def tiling(batch: int, classes: int) -> tuple[tuple[int], dict[str, int]]:
    """Return a launch's grid, and its options CLASSES, ROWS, COLUMNS and num_warps."""
    columns = triton.next_power_of_2(classes)
    rows = max(1, _TILE // columns)
    options = {"CLASSES": classes, "ROWS": rows, "COLUMNS": columns, "num_warps": max(1, columns // _TILE)}
    return (triton.cdiv(batch, rows),), options


def check_logits(logits: Tensor, kernel: str) -> None:
    """Check that a kernel, called `kernel` in the message, can take logits.

    Raises:
        KernelRefusal: they are not floating and of shape (B, C), or have more than 1024 classes.
    """
    shape = tuple(logits.shape)
    if not logits.is_floating_point() or len(shape) != 2 or not 1 <= shape[1] <= MAX_CLASSES:
        raise KernelRefusal(
            f"{kernel}: logits must be floating (B, C) with at most {MAX_CLASSES} classes, "
            f"got {logits.dtype} {shape}"
        )


@triton.jit
def tile_of(batch, CLASSES: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr):
    """Return a program's rows (ROWS,), columns (1, COLUMNS), and offsets in logits (ROWS, COLUMNS), int64."""
    row = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    column = tl.arange(0, COLUMNS)[None, :]
    return row, column, row[:, None].to(tl.int64) * CLASSES + column
