"""BatchNorm in train mode, with sum and ReLU behind it, as one function of autograd."""

from typing import Any

from torch import Tensor
from torch.autograd import Function
from torch.autograd.function import once_differentiable

from fastpeer.kernels.batch_norm import BatchNorm, Running
from fastpeer.kernels.sign_bits import empty_signs


def normalised(
    kernels: BatchNorm, x: Tensor, parts: int, weight: Tensor, bias: Tensor, eps: float,
    residual: Tensor | None = None, relu: bool = False, running: Running | None = None,
) -> Tensor:  # fmt: skip
    """Return what `kernels.forward` computes, differentiable once at x, weight, bias and residual."""
    result: Tensor = _Normalised.apply(  # type: ignore[no-untyped-call]
        x, weight, bias, residual, kernels, parts, eps, relu, running
    )
    return result


class _Normalised(Function):
    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weight: Tensor, bias: Tensor, residual: Tensor | None, kernels: BatchNorm,
        parts: int, eps: float, relu: bool, running: Running | None,
    ) -> Tensor:  # fmt: skip
        # The backward reads y only where it cannot find from x what ReLU let through.
        masked = relu and residual is not None
        packs = masked and kernels.keeps_signs and x.shape[1] % 8 == 0
        signs = empty_signs(x.shape, x.device) if packs else None
        y, mean, _, rstd = kernels.forward(x, parts, weight, bias, eps, residual, relu, running, signs=signs)
        ctx.kernels, ctx.parts, ctx.relu = kernels, parts, relu
        ctx.residual = None if residual is None else residual.dtype
        read = (y if signs is None else signs) if masked else None
        ctx.save_for_backward(x, read, mean, rstd, weight, bias)
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        x, read, mean, rstd, weight, bias = ctx.saved_tensors
        back = ctx.kernels.backward(
            gradient, x, read, mean, rstd, weight, bias, ctx.parts, ctx.relu, ctx.residual is not None
        )
        at_residual = None if ctx.residual is None else back.residual.to(ctx.residual)
        return back.x, back.weight.to(weight.dtype), back.bias.to(bias.dtype), at_residual, *[None] * 5
