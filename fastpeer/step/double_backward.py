"""Second derivatives through an input gradient, at the cost of a few of the network's own operators.

PyTorch differentiates BatchNorm's backward by some thirty elementwise operators and a convolution's backward
by convolutions of transposed tensors, and cannot differentiate the backward of its fast attention.

Names: `grad` is the gradient at a layer's output, `grad_x` at its input x, `grad_weight` at its weight. `t`
is the gradient of the final loss at `grad_x`, and `grad_grad` the one at `grad`.
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
Sizes = int | Sequence[int]


@contextmanager
def cheap_double_backward() -> Iterator[None]:
    """Make the input gradients of networks that run forward in the block cheap to differentiate.

    Train-mode BatchNorm and 2d convolutions are replaced by this module's. The gradient at the input, from
    `torch.autograd.grad(..., inputs=images, create_graph=True)`, can be differentiated once more with respect
    to weights and input. Differentiating gradients at the weights raises an error.
    """
    # Attention's MATH backend consists of operators that PyTorch can differentiate twice.
    with _ReplaceOperators(), sdpa_kernel(SDPBackend.MATH):
        yield


class _ReplaceOperators(TorchFunctionMode):
    """Calls this module's functions in place of PyTorch's."""

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        replacement: Callable[..., Any] = _REPLACEMENTS.get(func, func)
        return replacement(*args, **(kwargs or {}))


def conv2d(
    input: Tensor, weight: Tensor, bias: Tensor | None = None, stride: Sizes = 1,
    padding: Sizes | str = 0, dilation: Sizes = 1, groups: int = 1,
) -> Tensor:  # fmt: skip
    """Compute `F.conv2d`, with a cheap second derivative for 4-d inputs and padding by numbers."""
    if isinstance(padding, str) or input.dim() != 4 or not torch.is_grad_enabled():
        return F.conv2d(input, weight, bias, stride, padding, dilation, groups)
    x, weight, bias = _autocast(input), _autocast(weight), _autocast(bias)
    settings = (_pair(stride), _pair(padding), _pair(dilation), False, [0, 0], groups)
    # Two nodes of the graph, one for each gradient. x is detached in the first, so that an input gradient
    # passes through the second only and computes no weight gradients.
    out = _apply(_ConvolutionOfWeight, x.detach(), weight, bias, settings)
    return _apply(_ConvolutionOfInput, out, x, weight, settings)


def batch_norm(
    input: Tensor, running_mean: Tensor | None, running_var: Tensor | None, weight: Tensor | None = None,
    bias: Tensor | None = None, training: bool = False, momentum: float = 0.1, eps: float = 1e-5,
) -> Tensor:  # fmt: skip
    """Compute `F.batch_norm`, in training with a cheap second derivative."""
    # PyTorch's own function reports a single value per channel and an eps of 0.
    single = input.numel() <= input.shape[1]
    if not training or single or eps <= 0 or not torch.is_grad_enabled():
        return F.batch_norm(input, running_mean, running_var, weight, bias, training, momentum, eps)
    # Missing parameters get the dtype of those that exist: under autocast the input may be of a lower one.
    like = next(given for given in (weight, bias, running_mean, input) if given is not None).detach()
    weight = like.new_ones(input.shape[1]) if weight is None else weight
    bias = like.new_zeros(input.shape[1]) if bias is None else bias
    return _apply(_BatchNorm, input, weight, bias, running_mean, running_var, momentum, eps)


_REPLACEMENTS: dict[Callable[..., Any], Callable[..., Any]] = {
    torch.conv2d: conv2d,
    F.batch_norm: batch_norm,
}


def _apply(function: type[Function], *inputs: Any) -> Tensor:
    out: Tensor = function.apply(*inputs)  # type: ignore[no-untyped-call]
    return out


def _pair(sizes: Sizes) -> list[int]:
    pair = [sizes] if isinstance(sizes, int) else list(sizes)
    return pair * 2 if len(pair) == 1 else pair


def _autocast(tensor: Any) -> Any:
    """Cast a tensor as autocast would, which is disabled within this module's convolution."""
    if tensor is None or not tensor.is_floating_point() or tensor.dtype == torch.float64:
        return tensor
    kind = tensor.device.type
    return tensor.to(torch.get_autocast_dtype(kind)) if torch.is_autocast_enabled(kind) else tensor


class _ConvolutionOfWeight(Function):
    """A convolution as a function of weight and bias.

    The gradients at weight and bias have a node of their own, which an input gradient does not visit. A node
    for all gradients could not tell which of them `torch.autograd.grad` was called for.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None, settings: Any) -> Tensor:
        ctx.save_for_backward(x, weight)
        ctx.settings = settings
        with torch.autocast(x.device.type, enabled=False):
            out: Tensor = aten.convolution(x, weight, bias, *settings)
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        x, weight = ctx.saved_tensors
        mask = [False, *ctx.needs_input_grad[1:3]]
        return (*aten.convolution_backward(grad, x, weight, [len(weight)], *ctx.settings, mask), None)


class _ConvolutionOfInput(Function):
    """The same convolution as a function of its input; its result `out` is passed in, computed already."""

    @staticmethod
    def forward(ctx: Any, out: Tensor, x: Tensor, weight: Tensor, settings: Any) -> Tensor:
        # An input returned unchanged would be a view, which no activation could change in place.
        ctx.mark_dirty(out)
        ctx.save_for_backward(x, weight)
        ctx.settings = settings
        return out

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        x, weight = ctx.saved_tensors
        grad_x = None
        if ctx.needs_input_grad[1]:
            grad_x = _apply(_ConvolutionInputGradient, grad, x, weight, ctx.settings)
        return grad, grad_x, None, None


class _ConvolutionInputGradient(Function):
    """A convolution's gradient at its input, which is linear in `grad` and in the weight.

    Led back through it, `t` gives at `grad` the convolution of t, and at the weight the weight gradient of a
    convolution with the input t.
    """

    @staticmethod
    def forward(ctx: Any, grad: Tensor, x: Tensor, weight: Tensor, settings: Any) -> Tensor:
        ctx.save_for_backward(grad, weight)
        ctx.settings = settings
        grad_x: Tensor = aten.convolution_backward(grad, x, weight, None, *settings, [True, False, False])[0]
        return grad_x

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, t: Tensor) -> tuple[Tensor | None, ...]:
        grad, weight = ctx.saved_tensors
        mask = [False, ctx.needs_input_grad[2], False]
        with torch.autocast(grad.device.type, enabled=False):
            grad_grad = aten.convolution(t, weight, None, *ctx.settings)
        grad_weight = aten.convolution_backward(grad, t, weight, None, *ctx.settings, mask)[1]
        return grad_grad, None, grad_weight, None


class _BatchNorm(Function):
    """BatchNorm in training; updates the running statistics in place."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weight: Tensor, bias: Tensor, mean: Tensor | None, variance: Tensor | None,
        momentum: float, eps: float,
    ) -> Tensor:  # fmt: skip
        out: Tensor
        cudnn = torch.backends.cudnn.enabled
        # The dispatcher behind F.batch_norm; `backend` is the implementation it chose.
        out, *saved, backend = aten._batch_norm_impl_index(
            x, weight, bias, mean, variance, True, momentum, eps, cudnn
        )
        ctx.save_for_backward(x, weight, *saved)
        ctx.settings = backend, eps
        return out

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        gradients: tuple[Tensor, ...] = _BatchNormGradients.apply(  # type: ignore[no-untyped-call]
            grad, *ctx.saved_tensors, ctx.settings
        )
        return (*gradients, None, None, None, None)


def _batch_norm_gradients(
    grad: Tensor, x: Tensor, weight: Tensor, mean: Tensor, inv_std: Tensor, reserve: Tensor, settings: Any
) -> tuple[Tensor, Tensor, Tensor]:
    """Return a BatchNorm's gradients at x, weight (C,) and bias (C,).

    mean and inv_std (1/σ), (C,), are those of the batch; reserve is memory of cuDNN's forward.
    """
    backend, eps = settings
    # cuDNN may write into its reserve, which the second derivative reads again.
    gradients: tuple[Tensor, Tensor, Tensor] = aten._batch_norm_impl_index_backward(
        backend, x, grad, weight, None, None, mean, inv_std, True, eps, [True] * 3, reserve.clone()
    )
    return gradients


class _BatchNormGradients(Function):
    """A BatchNorm's gradients at x, weight and bias, of which the one at x can be differentiated.

    With g = grad, x̂ = (x − μ)/σ, and bars and means over a channel's values,
    grad_x = w/σ·(g − ḡ − x̂·mean(g·x̂)). This is a symmetric linear map of g. Led back through it, t
    therefore becomes what BatchNorm's own backward makes of t. The sums that this computes anyway, Σ t·x̂ and
    Σ t, make up most of the gradients at x and w.
    """

    @staticmethod
    def forward(
        ctx: Any, grad: Tensor, x: Tensor, weight: Tensor, mean: Tensor, inv_std: Tensor, reserve: Tensor,
        settings: Any,
    ) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
        # Unused gradients stay None instead of becoming zeros, so that `backward` can tell them.
        ctx.set_materialize_grads(False)
        gradients = _batch_norm_gradients(grad, x, weight, mean, inv_std, reserve, settings)
        grad_x, grad_weight, grad_bias = gradients
        ctx.save_for_backward(grad, x, weight, mean, inv_std, reserve, grad_weight, grad_bias)
        ctx.settings = settings
        return grad_x, grad_weight, grad_bias

    @staticmethod
    @once_differentiable
    def backward(
        ctx: Any, t: Tensor | None, t_weight: Tensor | None, t_bias: Tensor | None
    ) -> tuple[Tensor | None, ...]:
        if t_weight is not None or t_bias is not None:
            raise NotImplementedError("a BatchNorm's gradients at its weights cannot be differentiated")
        if t is None:
            return (None,) * 7
        grad, x, weight, mean, inv_std, reserve, *grad_sums = ctx.saved_tensors
        grad_grad, *t_sums = _batch_norm_gradients(t, x, weight, mean, inv_std, reserve, ctx.settings)
        count = x.numel() // x.shape[1]
        # A BatchNorm's gradients at weight and bias are Σ g·x̂ and Σ g.
        g_moments, t_moments = (
            _Moments(values, times_hat.to(mean.dtype) / count, total.to(mean.dtype) / count)
            for values, (times_hat, total) in ((grad, grad_sums), (t, t_sums))
        )
        grad_x, grad_weight = _gradients_at_x_and_weight(g_moments, t_moments, x, weight, mean, inv_std)
        return grad_grad, grad_x, grad_weight, None, None, None, None


class _Moments(NamedTuple):
    """A tensor in the shape of x, and per channel (C,) its mean and the mean of its product with x̂."""

    values: Tensor
    times_hat: Tensor
    mean: Tensor


def _gradients_at_x_and_weight(
    g: _Moments, t: _Moments, x: Tensor, weight: Tensor, mean: Tensor, inv_std: Tensor
) -> tuple[Tensor, Tensor]:
    """Differentiate Σ t·w/σ·(g − ḡ − x̂·mean(g·x̂)) with respect to x and w; it is symmetric in g and t.

    The gradient at x is a sum of x, g and t, each weighted per channel, and a shift per channel.
    """
    residual_covariance = _covariance(t.values, g) - g.times_hat * t.times_hat
    slope = -weight * inv_std.square()
    x_weight = slope * inv_std * (residual_covariance - 2 * g.times_hat * t.times_hat)
    g_weight, t_weight = slope * t.times_hat, slope * g.times_hat
    shift = -(x_weight * mean + g_weight * g.mean + t_weight * t.mean)
    grad_x = _weighted_sum((x, g.values, t.values), (x_weight, g_weight, t_weight), shift)
    grad_weight = x.numel() // x.shape[1] * inv_std * residual_covariance
    return grad_x, grad_weight.to(weight.dtype)


def _covariance(t: Tensor, g: _Moments) -> Tensor:
    """Return mean(t·(g − ḡ)) of each channel, (C,).

    It is the weight gradient of a BatchNorm with the input g, 1/σ = 1 and the output gradient t: PyTorch's
    kernel for that accumulates in float32 at least and reads both tensors once.
    """
    ones = torch.ones_like(g.mean)
    mask = [False, True, False]
    total: Tensor = aten.native_batch_norm_backward(
        t, g.values, ones, None, None, g.mean, ones, True, 0.0, mask
    )[1]
    return total / (t.numel() // t.shape[1])


def _weighted_sum(tensors: Sequence[Tensor], weights: Sequence[Tensor], shift: Tensor) -> Tensor:
    """Return Σ w·t + shift in the dtype of the tensors; weights and shift are (C,).

    Computed in the dtype of the weights and rounded once.
    """
    shape = [1, -1, *[1] * (tensors[0].dim() - 2)]
    total = torch.addcmul(shift.view(shape), tensors[0], weights[0].view(shape))
    for tensor, weight in zip(tensors[1:], weights[1:], strict=True):
        total.addcmul_(tensor, weight.view(shape))
    return total.to(tensors[0].dtype)
