"""Backward from given gradients at several tensors, without what torch imports to compare their shapes.

`torch.autograd.backward(outputs, gradients)` imports SymPy at its first call, for half a second; from a
scalar it imports nothing.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor


def seeded(outputs: Sequence[Tensor], gradients: Sequence[Tensor]) -> Tensor:
    """Return a scalar from which backward goes to the outputs with the given gradients, bit for bit.

    Args:
        outputs: differentiable tensors.
        gradients: one for each, of its shape and dtype.

    Returns:
        A zero () that requires a gradient.
    """
    with torch.enable_grad():
        result: Tensor = _Seeded.apply(len(outputs), *outputs, *gradients)  # type: ignore[no-untyped-call]
    return result


class _Seeded(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, count: int, *tensors: Tensor) -> Tensor:
        ctx.save_for_backward(*tensors[count:])
        return tensors[0].new_zeros(())

    @staticmethod
    def backward(ctx: Any, *_: Tensor) -> tuple[Tensor | None, ...]:
        gradients = ctx.saved_tensors
        return (None, *gradients, *(None for _ in gradients))
