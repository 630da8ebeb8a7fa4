"""Second derivatives through an input gradient, for the price of a few of the network's own operators.

PyTorch differentiates the backward pass of BatchNorm in some thirty elementwise operators, and that of a
convolution with one of transposed tensors, and its fast attention not at all.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd import Function
from torch.autograd.function import once_differentiable
from torch.nn import functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.overrides import TorchFunctionMode

aten = torch.ops.aten
Numbers = int | Sequence[int]


@contextmanager
def cheap_double_backward() -> Iterator[None]:
    """Let networks that run forward in here have input gradients that are cheap to differentiate.

    Training-mode BatchNorms and 2d convolutions become those of this module. The gradient at the input,
    from `torch.autograd.grad(..., inputs=images, create_graph=True)`, is differentiable once more, at
    weights and input; gradients at the weights are not, and say so.
    """
    with _Replacing(), sdpa_kernel(SDPBackend.MATH):
        yield


class _Replacing(TorchFunctionMode):
    """Calls this module's functions in the place of PyTorch's."""

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        own: Callable[..., Any] = _REPLACED.get(func, func)
        return own(*args, **(kwargs or {}))


def conv2d(
    input: Tensor, weight: Tensor, bias: Tensor | None = None, stride: Numbers = 1,
    padding: Numbers | str = 0, dilation: Numbers = 1, groups: int = 1,
) -> Tensor:  # fmt: skip
    """Compute `F.conv2d`, with a cheap second derivative where it can have one."""
    if isinstance(padding, str) or input.dim() != 4 or not torch.is_grad_enabled():
        return F.conv2d(input, weight, bias, stride, padding, dilation, groups)
    x, weight, bias = _as_autocast(input), _as_autocast(weight), _as_autocast(bias)
    how = (_pair(stride), _pair(padding), _pair(dilation), False, [0, 0], groups)
    # Detached: the way from the output to the images is not to lead through what makes weight gradients.
    out = _applied(_AtWeights, x.detach(), weight, bias, how)
    return _applied(_AtInput, out, x, weight, how)


def batch_norm(
    input: Tensor, running_mean: Tensor | None, running_var: Tensor | None, weight: Tensor | None = None,
    bias: Tensor | None = None, training: bool = False, momentum: float = 0.1, eps: float = 1e-5,
) -> Tensor:  # fmt: skip
    """Compute `F.batch_norm`, with a cheap second derivative in training."""
    # PyTorch refuses single values and an eps of 0.
    single = input.numel() <= input.shape[1]
    if not training or single or eps <= 0 or not torch.is_grad_enabled():
        return F.batch_norm(input, running_mean, running_var, weight, bias, training, momentum, eps)
    like = next(one for one in (weight, bias, running_mean, input) if one is not None).detach()
    weight = like.new_ones(input.shape[1]) if weight is None else weight
    bias = like.new_zeros(input.shape[1]) if bias is None else bias
    return _applied(_BatchNorm, input, weight, bias, running_mean, running_var, momentum, eps)


_REPLACED: dict[Callable[..., Any], Callable[..., Any]] = {
    torch.conv2d: conv2d,
    F.batch_norm: batch_norm,
}


def _applied(function: type[Function], *inputs: Any) -> Tensor:
    out: Tensor = function.apply(*inputs)  # type: ignore[no-untyped-call]
    return out


def _pair(numbers: Numbers) -> list[int]:
    pair = [numbers] if isinstance(numbers, int) else list(numbers)
    return pair * 2 if len(pair) == 1 else pair


def _as_autocast(tensor: Any) -> Any:
    """Cast what autocast would; it does not see into this module's convolution."""
    if tensor is None or not tensor.is_floating_point() or tensor.dtype == torch.float64:
        return tensor
    kind = tensor.device.type
    return tensor.to(torch.get_autocast_dtype(kind)) if torch.is_autocast_enabled(kind) else tensor


class _AtWeights(Function):
    """A convolution as a function of weight and bias, with their gradients.

    A node of its own, which a gradient asked for the images alone never comes to; a node that made all
    gradients could not know which are asked for.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None, how: Any) -> Tensor:
        ctx.save_for_backward(x, weight)
        ctx.how = how
        with torch.autocast(x.device.type, enabled=False):
            out: Tensor = aten.convolution(x, weight, bias, *how)
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        x, weight = ctx.saved_tensors
        mask = [False, *ctx.needs_input_grad[1:3]]
        return (*aten.convolution_backward(grad, x, weight, [len(weight)], *ctx.how, mask), None)


class _AtInput(Function):
    """The same convolution, computed already, as a function of its input."""

    @staticmethod
    def forward(ctx: Any, out: Tensor, x: Tensor, weight: Tensor, how: Any) -> Tensor:
        # Else what comes out were a view, which no activation may change in place.
        ctx.mark_dirty(out)
        ctx.save_for_backward(x, weight)
        ctx.how = how
        return out

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        x, weight = ctx.saved_tensors
        at_x = _applied(_ConvolutionBack, grad, x, weight, ctx.how) if ctx.needs_input_grad[1] else None
        return grad, at_x, None, None


class _ConvolutionBack(Function):
    """The gradient of a convolution at its input: linear in the gradient and in the weight."""

    @staticmethod
    def forward(ctx: Any, grad: Tensor, x: Tensor, weight: Tensor, how: Any) -> Tensor:
        ctx.save_for_backward(grad, weight)
        ctx.how = how
        at_x: Tensor = aten.convolution_backward(grad, x, weight, None, *how, [True, False, False])[0]
        return at_x

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, at_x: Tensor) -> tuple[Tensor | None, ...]:
        grad, weight = ctx.saved_tensors
        mask = [False, ctx.needs_input_grad[2], False]
        with torch.autocast(grad.device.type, enabled=False):
            at_grad = aten.convolution(at_x, weight, None, *ctx.how)
        at_weight = aten.convolution_backward(grad, at_x, weight, None, *ctx.how, mask)[1]
        return at_grad, None, at_weight, None


class _BatchNorm(Function):
    """BatchNorm in training; moves the running statistics."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weight: Tensor, bias: Tensor, mean: Tensor | None, variance: Tensor | None,
        momentum: float, eps: float,
    ) -> Tensor:  # fmt: skip
        out: Tensor
        cudnn = torch.backends.cudnn.enabled
        out, *saved, which = aten._batch_norm_impl_index(
            x, weight, bias, mean, variance, True, momentum, eps, cudnn
        )
        ctx.save_for_backward(x, weight, *saved)
        ctx.how = which, eps
        return out

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        gradients: tuple[Tensor, ...] = _BatchNormBack.apply(  # type: ignore[no-untyped-call]
            grad, *ctx.saved_tensors, ctx.how
        )
        return (*gradients, None, None, None, None)


def _batch_norm_back(
    grad: Tensor, x: Tensor, weight: Tensor, mean: Tensor, inverse: Tensor, reserve: Tensor, how: Any
) -> tuple[Tensor, Tensor, Tensor]:
    """Return a BatchNorm's gradients at x, weight and bias; mean and 1/σ are those of the batch."""
    which, eps = how
    # cuDNN may write into its reserve, which is read again.
    gradients: tuple[Tensor, Tensor, Tensor] = aten._batch_norm_impl_index_backward(
        which, x, grad, weight, None, None, mean, inverse, True, eps, [True] * 3, reserve.clone()
    )
    return gradients


class _BatchNormBack(Function):
    """The gradients of a BatchNorm; the one at its input can be differentiated.

    With x̂ = (x − μ)/σ and means over a channel's values, it is w/σ·(g − ḡ − x̂·mean(g·x̂)), a symmetric map
    of g: led back through it, a tensor t becomes what BatchNorm's own backward makes of t, and the sums in
    that make up most of the gradients at x and w.
    """

    @staticmethod
    def forward(
        ctx: Any, grad: Tensor, x: Tensor, weight: Tensor, mean: Tensor, inverse: Tensor, reserve: Tensor,
        how: Any,
    ) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
        ctx.set_materialize_grads(False)
        at_x, at_weight, at_bias = _batch_norm_back(grad, x, weight, mean, inverse, reserve, how)
        ctx.save_for_backward(grad, x, weight, mean, inverse, reserve, at_weight, at_bias)
        ctx.how = how
        return at_x, at_weight, at_bias

    @staticmethod
    @once_differentiable
    def backward(
        ctx: Any, t: Tensor | None, of_weight: Tensor | None, of_bias: Tensor | None
    ) -> tuple[Tensor | None, ...]:
        if of_weight is not None or of_bias is not None:
            raise NotImplementedError("a BatchNorm's gradients at its weights cannot be differentiated")
        if t is None:
            return (None,) * 7
        grad, x, weight, mean, inverse, reserve, *sums = ctx.saved_tensors
        at_grad, *t_sums = _batch_norm_back(t, x, weight, mean, inverse, reserve, ctx.how)
        count = x.numel() // x.shape[1]
        ours, theirs = (
            _Gradient(one, hat.to(mean.dtype) / count, total.to(mean.dtype) / count)
            for one, (hat, total) in ((grad, sums), (t, t_sums))
        )
        at_x, at_weight = _at_x_and_weight(ours, theirs, x, weight, mean, inverse)
        return at_grad, at_x, at_weight, None, None, None, None


class _Gradient(NamedTuple):
    """A tensor in the shape of x, and the means of it times x̂ and of itself, (C,)."""

    values: Tensor
    hat: Tensor
    mean: Tensor


def _at_x_and_weight(
    g: _Gradient, t: _Gradient, x: Tensor, weight: Tensor, mean: Tensor, inverse: Tensor
) -> tuple[Tensor, Tensor]:
    """Differentiate Σ t·w/σ·(g − ḡ − x̂·mean(g·x̂)) at x and w; all are alike in g and t."""
    together = _covariance(t.values, g) - g.hat * t.hat
    slope = -weight * inverse.square()
    of_x = slope * inverse * (together - 2 * g.hat * t.hat)
    of_g, of_t = slope * t.hat, slope * g.hat
    shift = -(of_x * mean + of_g * g.mean + of_t * t.mean)
    at_x = _weighted_sum((x, g.values, t.values), (of_x, of_g, of_t), shift)
    at_weight = x.numel() // x.shape[1] * inverse * together
    return at_x, at_weight.to(weight.dtype)


def _covariance(t: Tensor, g: _Gradient) -> Tensor:
    """Return mean(t·(g − ḡ)) of each channel, (C,): any BatchNorm's backward sums it, wide, in one read."""
    one = torch.ones_like(g.mean)
    mask = [False, True, False]
    total: Tensor = aten.native_batch_norm_backward(
        t, g.values, one, None, None, g.mean, one, True, 0.0, mask
    )[1]
    return total / (t.numel() // t.shape[1])


def _weighted_sum(tensors: Sequence[Tensor], weights: Sequence[Tensor], shift: Tensor) -> Tensor:
    """Return Σ w·t + shift, each weight and the shift (C,) numbers of channels; rounded once."""
    shape = [1, -1, *[1] * (tensors[0].dim() - 2)]
    total = torch.addcmul(shift.view(shape), tensors[0], weights[0].view(shape))
    for tensor, weight in zip(tensors[1:], weights[1:], strict=True):
        total.addcmul_(tensor, weight.view(shape))
    return total.to(tensors[0].dtype)
