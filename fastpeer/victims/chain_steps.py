"""The operations of a chain, each with its forward and its backward computation.

Values and gradients are kept in dictionaries, keyed by the number of the graph's node that they belong to. A
step's backward removes the gradient of its result, and adds to the gradients of its sources.
"""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor
from torch.nn import functional as F

from fastpeer.models.normalized import InputNormalization
from fastpeer.victims.convolution import Convolutions, through_relu
from fastpeer.victims.folding import EvalBatchNorm, FoldedConv2d, FoldedLinear

Values = dict[int, Tensor]
"""Activations or their gradients, by node number, in the shapes that the network gives them."""


@dataclass
class Step:
    """One operation.

    Attributes:
        source: number of the value it reads.
        result: number of the value it writes.
        relu: whether a ReLU ends it.
        masked: whether the gradient at its result is already that in front of its ReLU: the first step that
            reads the result, which is the last to add to the gradient, has applied the ReLU's mask.
    """

    source: int
    result: int
    relu: bool = field(default=False, kw_only=True)
    masked: bool = field(default=False, kw_only=True)

    @property
    def sources(self) -> set[int]:
        """Numbers of all values that it reads."""
        return {self.source}

    def forward(self, values: Values) -> Tensor:
        """Compute the step's result from the values of the steps before it; store nothing."""
        raise NotImplementedError

    def forward_to_return(self, values: Values) -> Tensor:
        """Compute the same, and store in `values` what only the way back needs of it."""
        return self.forward(values)

    def backward(self, values: Values, gradients: Values) -> None:
        """Remove the result's gradient from `gradients`, and add the sources' gradients to it."""
        raise NotImplementedError

    def broadcasts(self, values: Mapping[int, Tensor]) -> bool:
        """Tell whether it adds tensors of different shapes."""
        return False

    def gradient_before_relu(self, values: Values, gradients: Values) -> Tensor:
        """Remove the result's gradient from `gradients`, and return it as it is in front of the ReLU."""
        gradient = gradients.pop(self.result)
        return through_relu(gradient, values[self.result]) if self.relu and not self.masked else gradient


@dataclass
class Convolve(Step):
    """[relu](convolution + bias [+ residual]): one fused call where the library has it.

    Attributes:
        conv: the folded layer.
        convolutions: runs it.
        residual: number of the value that is added, if any.
        masks: whether the step that its source comes from ends in a ReLU, whose mask this one applies.
        keeps_signs: whether it is of use to keep the signs of its own result, as the mask of its ReLU.
    """

    conv: FoldedConv2d
    convolutions: Convolutions
    residual: int | None = None
    masks: bool = False
    keeps_signs: bool = False

    @property
    def sources(self) -> set[int]:
        """Numbers of the convolved value and of the residual."""
        return {self.source} if self.residual is None else {self.source, self.residual}

    @property
    def casts(self) -> bool:
        """Whether its result is of another dtype than it computes in, as that of the first layer may be."""
        return self.conv.weight.dtype != self.conv.result_dtype

    def forward(self, values: Values) -> Tensor:
        """Compute in the weights' dtype and convert to the dtype of the layers behind."""
        x = values[self.source].to(self.conv.weight.dtype)
        residual = None if self.residual is None else values[self.residual]
        if residual is not None and self.broadcasts(values):
            # No library's epilogue does that.
            out = self.convolutions.forward(self.conv, x, None, relu=False) + residual
            out = torch.relu_(out) if self.relu else out
        else:
            out = self.convolutions.forward(self.conv, x, residual, self.relu)
        return out.to(self.conv.result_dtype)

    def forward_to_return(self, values: Values) -> Tensor:
        """Compute the same, and store the result's signs if they are kept."""
        if not self.keeps_signs or self.broadcasts(values):
            return self.forward(values)
        x = values[self.source].to(self.conv.weight.dtype)
        residual = None if self.residual is None else values[self.residual]
        out, signs = self.convolutions.forward_with_signs(self.conv, x, residual)
        if signs is not None:
            values[signs_number(self.result)] = signs
        return out.to(self.conv.result_dtype)

    def backward(self, values: Values, gradients: Values) -> None:
        """Pass the masked gradient to the residual, and its transposed convolution to the source."""
        gradient = self.gradient_before_relu(values, gradients)
        if self.residual is not None:
            _accumulate(gradients, self.residual, _like(gradient, values[self.residual]))
            gradient = gradient.sum_to_size(self._convolved_shape(values[self.source]))
        # Pixels need more bits than bf16 has; their gradient does not, since the attack uses its sign. The
        # first layer's backward therefore stays in the dtype of the layers behind it.
        x = values[self.source]
        if x.dtype != gradient.dtype:
            # Without a mask, shape and dtype are all that the gradient depends on: nothing is converted.
            x = x.to(gradient.dtype) if self.masks else torch.empty_like(x, dtype=gradient.dtype)
        accumulated = gradients.get(self.source)
        if self.masks:
            signs = values.pop(signs_number(self.source), None)
            found = self.convolutions.masked_input_gradient(self.conv, x, gradient, accumulated, signs)
        else:
            found = self.convolutions.input_gradient(self.conv, x, gradient, accumulated)
        gradients[self.source] = found

    def broadcasts(self, values: Mapping[int, Tensor]) -> bool:
        """Tell whether the residual has another shape than the convolution's result."""
        if self.residual is None:
            return False
        return values[self.residual].shape != self._convolved_shape(values[self.source])

    def _convolved_shape(self, x: Tensor) -> torch.Size:
        conv = self.conv
        sides = [
            (side + 2 * padding - dilation * (kernel - 1) - 1) // stride + 1
            for side, kernel, stride, padding, dilation in zip(
                x.shape[2:], conv.weight.shape[2:], conv.stride, conv.padding, conv.dilation, strict=True
            )
        ]
        return torch.Size([len(x), len(conv.weight), *sides])


@dataclass
class Normalise(Step):
    """[relu](scale and shift) of a BatchNorm that no convolution precedes, at its running statistics."""

    norm: EvalBatchNorm

    def forward(self, values: Values) -> Tensor:
        """Scale and shift; the ReLU overwrites the fresh result, which nothing else reads."""
        out = self.norm(values[self.source])
        return torch.relu_(out) if self.relu else out

    def backward(self, values: Values, gradients: Values) -> None:
        """Multiply the masked gradient by the BatchNorm's scale."""
        gradient = self.gradient_before_relu(values, gradients)
        _accumulate(gradients, self.source, self.norm.input_gradient(gradient))


@dataclass
class NormaliseInput(Step):
    """(x − mean) / std of the images, in their dtype."""

    norm: InputNormalization

    def forward(self, values: Values) -> Tensor:
        """Normalise the images."""
        normalised: Tensor = self.norm(values[self.source])
        return normalised

    def backward(self, values: Values, gradients: Values) -> None:
        """Divide the gradient by std."""
        _accumulate(gradients, self.source, self.norm.input_gradient(gradients.pop(self.result)))


@dataclass
class Add(Step):
    """[relu](source + other)."""

    other: int

    @property
    def sources(self) -> set[int]:
        """Numbers of both summands."""
        return {self.source, self.other}

    def broadcasts(self, values: Mapping[int, Tensor]) -> bool:
        """Tell whether the summands have different shapes."""
        return values[self.source].shape != values[self.other].shape

    def forward(self, values: Values) -> Tensor:
        """Add; the ReLU overwrites the fresh sum, which nothing else reads."""
        out = values[self.source] + values[self.other]
        return torch.relu_(out) if self.relu else out

    def backward(self, values: Values, gradients: Values) -> None:
        """Pass the masked gradient to both summands; for x + x that counts twice."""
        gradient = self.gradient_before_relu(values, gradients)
        _accumulate(gradients, self.source, _like(gradient, values[self.source]))
        _accumulate(gradients, self.other, _like(gradient, values[self.other]))


class ApplyRelu(Step):
    """A ReLU that no step before it could take in."""

    def forward(self, values: Values) -> Tensor:
        """Apply the ReLU, not in place: other steps may read the source."""
        return torch.relu(values[self.source])

    def backward(self, values: Values, gradients: Values) -> None:
        """Let the gradient through where the result is positive."""
        gradient = through_relu(gradients.pop(self.result), values[self.result])
        _accumulate(gradients, self.source, gradient)


@dataclass
class Mean(Step):
    """Means over some dimensions; at least float32, as is the classifier behind them.

    Attributes:
        dims: the dimensions: 2 and 3 for the average of each plane of (B, C, H, W).
        keepdim: whether they stay in the result, with a size of 1.
    """

    dims: tuple[int, ...]
    keepdim: bool

    def forward(self, values: Values) -> Tensor:
        """Return the means."""
        x = values[self.source]
        return x.mean(self.dims, self.keepdim, dtype=_at_least_float32(x))

    def backward(self, values: Values, gradients: Values) -> None:
        """Give each element an equal share of its mean's gradient."""
        x = values[self.source]
        sides = [1 if self._is_averaged(dim, x) else side for dim, side in enumerate(x.shape)]
        count = math.prod([x.shape[dim] for dim in self.dims])
        share = (gradients.pop(self.result) / count).to(x.dtype)
        # An expanded tensor has strides of 0.
        _accumulate(gradients, self.source, _in_memory(share.view(sides).expand(x.shape)))

    def _is_averaged(self, dim: int, x: Tensor) -> bool:
        return dim in self.dims or dim - x.dim() in self.dims


@dataclass
class AveragePool(Step):
    """Average pooling with windows, (B, C, H, W) to (B, C, H', W').

    Attributes:
        settings: kernel, stride, padding, and the three settings that follow them in `F.avg_pool2d`.
    """

    settings: tuple[list[int], list[int], list[int], bool, bool, int | None]

    def forward(self, values: Values) -> Tensor:
        """Return the means of the windows; a single window is as exact as a mean of the plane."""
        x = values[self.source]
        whole = list(x.shape[2:]) == self.settings[0]
        return F.avg_pool2d(x.to(_at_least_float32(x)) if whole else x, *self.settings)

    def backward(self, values: Values, gradients: Values) -> None:
        """Give each pixel its share of its windows' gradients."""
        x = values[self.source]
        gradient = gradients.pop(self.result).to(x.dtype)
        spread: Tensor = torch.ops.aten.avg_pool2d_backward(gradient, x, *self.settings)
        _accumulate(gradients, self.source, _in_memory(spread))


@dataclass
class Reshape(Step):
    """Another shape for the same elements in the same order, such as (B, C, 1, 1) to (B, C).

    Attributes:
        change: changes the shape.
    """

    change: Callable[[Tensor], Tensor]

    def forward(self, values: Values) -> Tensor:
        """Change the shape."""
        return self.change(values[self.source])

    def backward(self, values: Values, gradients: Values) -> None:
        """Give the gradient the source's shape."""
        x = values[self.source]
        gradient = gradients.pop(self.result).to(x.dtype)
        _accumulate(gradients, self.source, _in_memory(gradient.reshape(x.shape)))


@dataclass
class ApplyLinear(Step):
    """A linear layer: features (B, in) to (B, out), which are the logits behind the last one."""

    linear: FoldedLinear

    def forward(self, values: Values) -> Tensor:
        """Apply the layer."""
        out: Tensor = self.linear(values[self.source])
        return out

    def backward(self, values: Values, gradients: Values) -> None:
        """Multiply the result's gradient by the weights."""
        gradient = gradients.pop(self.result).to(self.linear.weight.dtype) @ self.linear.weight
        _accumulate(gradients, self.source, gradient.to(values[self.source].dtype))


def signs_number(number: int) -> int:
    """Return the number under which a value's signs are kept beside it."""
    return -1 - number


def _at_least_float32(x: Tensor) -> torch.dtype:
    return torch.promote_types(x.dtype, torch.float32)


def _in_memory(gradient: Tensor) -> Tensor:
    """Lay out a gradient as the convolutions behind it want it: planes in channels-last memory."""
    planes = gradient.dim() == 4
    return gradient.contiguous(memory_format=torch.channels_last if planes else torch.contiguous_format)


def _like(gradient: Tensor, summand: Tensor) -> Tensor:
    """Return the gradient at a summand for the one at the sum, whose shape and dtype may be wider."""
    return gradient.sum_to_size(summand.shape).to(summand.dtype)


def _accumulate(gradients: Values, number: int, gradient: Tensor) -> None:
    # Not in place: the first gradient may be shared with another source, as in a residual sum.
    gradients[number] = gradients[number] + gradient if number in gradients else gradient
