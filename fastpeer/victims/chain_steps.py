"""The operations of a chain, each with its way forward and its way back.

Values and gradients are kept by number. A step takes its result's gradient off the table, and adds to what
lies there for its sources.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from fastpeer.models.normalized import InputNormalization
from fastpeer.victims.convolution import Convolutions
from fastpeer.victims.folding import EvalBatchNorm, FoldedConv2d, FoldedLinear

Values = dict[int, Tensor]


@dataclass
class Step:
    """One operation: reads `source`, writes `result`."""

    source: int
    result: int

    def forward(self, values: Values) -> Tensor:
        """Return the result."""
        raise NotImplementedError

    def backward(self, values: Values, gradients: Values) -> None:
        """Turn the result's gradient into the sources'."""
        raise NotImplementedError


@dataclass
class Convolve(Step):
    """[relu](convolution + bias [+ residual])."""

    conv: FoldedConv2d
    convolutions: Convolutions
    residual: int | None = None
    relu: bool = False

    @property
    def casts(self) -> bool:
        """Whether it computes in another dtype than it hands on, as the one does that sees the pixels."""
        return self.conv.weight.dtype != self.conv.result_dtype

    def forward(self, values: Values) -> Tensor:
        """Convolve."""
        x = values[self.source].to(self.conv.weight.dtype)
        residual = None if self.residual is None else values[self.residual]
        out = self.convolutions.forward(self.conv, x, residual, self.relu)
        return out.to(self.conv.result_dtype)

    def backward(self, values: Values, gradients: Values) -> None:
        """Mask, hand to the residual, convolve back."""
        gradient = _masked(gradients.pop(self.result), values[self.result], self.relu)
        if self.residual is not None:
            _give(gradients, self.residual, gradient)
        # Pixels need more bits than bf16 has, their gradient does not: the way back stays in one dtype.
        x = values[self.source].to(gradient.dtype)
        gradients[self.source] = self.convolutions.input_gradient(
            self.conv, x, gradient, gradients.get(self.source)
        )


@dataclass
class Normalise(Step):
    """[relu](scale and shift) of a BatchNorm that no convolution precedes."""

    norm: EvalBatchNorm
    relu: bool = False

    def forward(self, values: Values) -> Tensor:
        """Scale and shift."""
        out = self.norm(values[self.source])
        return torch.relu_(out) if self.relu else out

    def backward(self, values: Values, gradients: Values) -> None:
        """Mask, scale."""
        gradient = _masked(gradients.pop(self.result), values[self.result], self.relu)
        _give(gradients, self.source, self.norm.input_gradient(gradient))


@dataclass
class NormaliseInput(Step):
    """Difference from the mean over the deviation, in the dtype of the images."""

    norm: InputNormalization

    def forward(self, values: Values) -> Tensor:
        """Subtract and divide."""
        normalised: Tensor = self.norm(values[self.source])
        return normalised

    def backward(self, values: Values, gradients: Values) -> None:
        """Divide."""
        _give(gradients, self.source, self.norm.input_gradient(gradients.pop(self.result)))


@dataclass
class Add(Step):
    """[relu](source + other)."""

    other: int
    relu: bool = False

    def forward(self, values: Values) -> Tensor:
        """Add."""
        out = values[self.source] + values[self.other]
        return torch.relu_(out) if self.relu else out

    def backward(self, values: Values, gradients: Values) -> None:
        """Mask, hand to both."""
        gradient = _masked(gradients.pop(self.result), values[self.result], self.relu)
        _give(gradients, self.source, gradient)
        _give(gradients, self.other, gradient)


class Rectify(Step):
    """ReLU by itself."""

    def forward(self, values: Values) -> Tensor:
        """Rectify."""
        return torch.relu(values[self.source])

    def backward(self, values: Values, gradients: Values) -> None:
        """Mask."""
        _give(gradients, self.source, _masked(gradients.pop(self.result), values[self.result], True))


class Pool(Step):
    """Mean of each plane: (B, C, H, W) to (B, C), at least in float32."""

    def forward(self, values: Values) -> Tensor:
        """Average."""
        x = values[self.source]
        wide = torch.float64 if x.dtype == torch.float64 else torch.float32
        return x.mean((2, 3), dtype=wide)

    def backward(self, values: Values, gradients: Values) -> None:
        """Spread evenly."""
        x = values[self.source]
        share = (gradients.pop(self.result) / (x.shape[2] * x.shape[3])).to(x.dtype)
        spread = share.view(*share.shape, 1, 1).expand(x.shape)
        _give(gradients, self.source, spread.contiguous(memory_format=torch.channels_last))


@dataclass
class Classify(Step):
    """The linear layer at the end."""

    linear: FoldedLinear

    def forward(self, values: Values) -> Tensor:
        """Compute the logits."""
        logits: Tensor = self.linear(values[self.source])
        return logits

    def backward(self, values: Values, gradients: Values) -> None:
        """Product with the weights."""
        gradient = gradients.pop(self.result).to(self.linear.weight.dtype) @ self.linear.weight
        _give(gradients, self.source, gradient)


def _masked(gradient: Tensor, result: Tensor, relu: bool) -> Tensor:
    """Let a gradient through a ReLU where its result is positive."""
    if not relu:
        return gradient
    masked: Tensor = torch.ops.aten.threshold_backward(gradient, result, 0)
    return masked


def _give(gradients: Values, number: int, gradient: Tensor) -> None:
    gradients[number] = gradients[number] + gradient if number in gradients else gradient
