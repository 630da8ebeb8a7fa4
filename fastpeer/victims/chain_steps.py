"""The operations of a chain, each with its forward and its backward computation.

Values and gradients are kept in dictionaries, keyed by the number of the graph's node that they belong to. A
step's backward removes the gradient of its result, and adds to the gradients of its sources.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from fastpeer.models.normalized import InputNormalization
from fastpeer.victims.convolution import Convolutions
from fastpeer.victims.folding import EvalBatchNorm, FoldedConv2d, FoldedLinear

Values = dict[int, Tensor]
"""Activations or their gradients, by node number: (B, C, H, W), or (B, C) behind the pooling."""


@dataclass
class Step:
    """One operation.

    Attributes:
        source: number of the value it reads.
        result: number of the value it writes.
    """

    source: int
    result: int

    def forward(self, values: Values) -> Tensor:
        """Compute the step's result from the values of the steps before it; store nothing."""
        raise NotImplementedError

    def backward(self, values: Values, gradients: Values) -> None:
        """Remove the result's gradient from `gradients`, and add the sources' gradients to it."""
        raise NotImplementedError


@dataclass
class Convolve(Step):
    """[relu](convolution + bias [+ residual]): one fused call where the library has it.

    Attributes:
        conv: the folded layer.
        convolutions: runs it.
        residual: number of the value that is added, if any.
        relu: whether a ReLU ends the step.
    """

    conv: FoldedConv2d
    convolutions: Convolutions
    residual: int | None = None
    relu: bool = False

    @property
    def casts(self) -> bool:
        """Whether its result is of another dtype than it computes in, as that of the first layer may be."""
        return self.conv.weight.dtype != self.conv.result_dtype

    def forward(self, values: Values) -> Tensor:
        """Compute in the weights' dtype and convert to the dtype of the layers behind."""
        x = values[self.source].to(self.conv.weight.dtype)
        residual = None if self.residual is None else values[self.residual]
        out = self.convolutions.forward(self.conv, x, residual, self.relu)
        return out.to(self.conv.result_dtype)

    def backward(self, values: Values, gradients: Values) -> None:
        """Pass the masked gradient to the residual, and its transposed convolution to the source."""
        gradient = _through_relu(gradients.pop(self.result), values[self.result], self.relu)
        if self.residual is not None:
            _accumulate(gradients, self.residual, gradient)
        # Pixels need more bits than bf16 has; their gradient does not, since the attack uses its sign. The
        # first layer's backward therefore stays in the dtype of the layers behind it.
        x = values[self.source].to(gradient.dtype)
        gradients[self.source] = self.convolutions.input_gradient(
            self.conv, x, gradient, gradients.get(self.source)
        )


@dataclass
class Normalise(Step):
    """[relu](scale and shift) of a BatchNorm that no convolution precedes, at its running statistics."""

    norm: EvalBatchNorm
    relu: bool = False

    def forward(self, values: Values) -> Tensor:
        """Scale and shift; the ReLU overwrites the fresh result, which nothing else reads."""
        out = self.norm(values[self.source])
        return torch.relu_(out) if self.relu else out

    def backward(self, values: Values, gradients: Values) -> None:
        """Multiply the masked gradient by the BatchNorm's scale."""
        gradient = _through_relu(gradients.pop(self.result), values[self.result], self.relu)
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
    relu: bool = False

    def forward(self, values: Values) -> Tensor:
        """Add; the ReLU overwrites the fresh sum, which nothing else reads."""
        out = values[self.source] + values[self.other]
        return torch.relu_(out) if self.relu else out

    def backward(self, values: Values, gradients: Values) -> None:
        """Pass the masked gradient to both summands; for x + x that counts twice."""
        gradient = _through_relu(gradients.pop(self.result), values[self.result], self.relu)
        _accumulate(gradients, self.source, gradient)
        _accumulate(gradients, self.other, gradient)


class ApplyRelu(Step):
    """A ReLU that no step before it could take in."""

    def forward(self, values: Values) -> Tensor:
        """Apply the ReLU, not in place: other steps may read the source."""
        return torch.relu(values[self.source])

    def backward(self, values: Values, gradients: Values) -> None:
        """Let the gradient through where the result is positive."""
        gradient = _through_relu(gradients.pop(self.result), values[self.result], relu=True)
        _accumulate(gradients, self.source, gradient)


class Pool(Step):
    """Global average pooling, (B, C, H, W) to (B, C); at least float32, as is the classifier behind it."""

    def forward(self, values: Values) -> Tensor:
        """Return the mean of each plane."""
        x = values[self.source]
        wide = torch.float64 if x.dtype == torch.float64 else torch.float32
        return x.mean((2, 3), dtype=wide)

    def backward(self, values: Values, gradients: Values) -> None:
        """Give each pixel an equal share of its plane's gradient."""
        x = values[self.source]
        share = (gradients.pop(self.result) / (x.shape[2] * x.shape[3])).to(x.dtype)
        spread = share.view(*share.shape, 1, 1).expand(x.shape)
        # An expanded tensor has strides of 0; the convolutions behind it want channels-last memory.
        _accumulate(gradients, self.source, spread.contiguous(memory_format=torch.channels_last))


@dataclass
class ApplyLinear(Step):
    """The linear layer that ends the network: features (B, C) to logits (B, classes)."""

    linear: FoldedLinear

    def forward(self, values: Values) -> Tensor:
        """Compute the logits."""
        logits: Tensor = self.linear(values[self.source])
        return logits

    def backward(self, values: Values, gradients: Values) -> None:
        """Multiply the logits' gradient by the weights."""
        gradient = gradients.pop(self.result).to(self.linear.weight.dtype) @ self.linear.weight
        _accumulate(gradients, self.source, gradient)


def _through_relu(gradient: Tensor, result: Tensor, relu: bool) -> Tensor:
    """Return the gradient in front of a step's ReLU, if it has one: 0 where the result is not positive."""
    if not relu:
        return gradient
    # What autograd calls for a ReLU: one kernel, without a mask in memory.
    masked: Tensor = torch.ops.aten.threshold_backward(gradient, result, 0)
    return masked


def _accumulate(gradients: Values, number: int, gradient: Tensor) -> None:
    # Not in place: the first gradient may be shared with another source, as in a residual sum.
    gradients[number] = gradients[number] + gradient if number in gradients else gradient
