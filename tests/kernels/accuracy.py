"""How far a kernel is from the truth, against how far plain PyTorch is at the same precision of the input."""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor


class Errors(NamedTuple):
    """Largest absolute deviations of one result from the float64 oracle's, and the result's largest value."""

    kernel: float
    plain: float
    largest: float

    @property
    def ratio(self) -> float:
        """How many times plain PyTorch's error the kernel's is."""
        return self.kernel / self.plain if self.plain else float("inf" if self.kernel else "nan")


def errors(kernel: Sequence[Tensor], plain: Sequence[Tensor], truth: Sequence[Tensor]) -> list[Errors]:
    """Compare results one by one."""
    return [_errors(*results) for results in zip(kernel, plain, truth, strict=True)]


def _errors(kernel: Tensor, plain: Tensor, truth: Tensor) -> Errors:
    kernel, plain, truth = (one.detach().double().cpu() for one in (kernel, plain, truth))
    off = [float((one - truth).abs().max()) for one in (kernel, plain)]
    return Errors(*off, float(truth.abs().max()))


def worst(draws: Sequence[Sequence[Errors]]) -> list[Errors]:
    """Return each result's largest errors over several draws of the inputs.

    Of few values PyTorch's error may be small by chance, on one processor and not on another.
    """
    return [Errors(*map(max, zip(*same, strict=True))) for same in zip(*draws, strict=True)]


def assert_at_most_twice(compared: Sequence[Errors]) -> None:
    """Fail unless each error is at most twice plain PyTorch's.

    Two units in the last float32 place of the largest value pass too: with few values, PyTorch's error may be
    zero by chance.
    """
    for one in compared:
        assert one.kernel <= max(2 * one.plain, 2**-22 * one.largest), one


def stored(result: Tensor, dtype: torch.dtype) -> Tensor:
    """Round float32 as kernels do when they store it: Triton's interpreter cuts bfloat16 off, GPUs round."""
    if dtype == torch.bfloat16 and result.device.type == "cpu":
        result = (result.view(torch.int32) & ~0xFFFF).view(torch.float32)
    return result.to(dtype)
