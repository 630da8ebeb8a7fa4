"""Random networks of what people build residual networks from, in place and not."""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

SIDE, CLASSES, CHANNELS = 8, 5, 8


def add_to_first(x: Tensor, y: Tensor) -> Tensor:
    x += y
    return x


ALONE: dict[str, Callable[[Tensor], Tensor]] = {
    "relu": torch.relu,
    "F.relu": F.relu,
    "method": lambda x: x.relu(),
    "in place": lambda x: F.relu(x, inplace=True),
    "smooth": lambda x: F.avg_pool2d(x, 3, 1, 1),
    "largest": lambda x: F.max_pool2d(x, 3, 1, 1),
}
"""Functions of one map that keep its shape."""
POOLED: dict[str, Callable[[Tensor], Tensor]] = {
    "mean": lambda x: x.mean((2, 3), keepdim=True),
    "adaptive": lambda x: F.adaptive_avg_pool2d(x, 1),
}
SUMS: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "+": lambda x, y: x + y,
    "torch.add": torch.add,
    "gate": lambda x, y: x * torch.sigmoid(y),
}
ENDS: dict[str, Callable[[Tensor], Tensor]] = {
    "mean": lambda x: x.mean((2, 3)),
    "adaptive": lambda x: F.adaptive_avg_pool2d(x, 1).flatten(1),
    "flatten": lambda x: x.flatten(1),
}


class Operation(NamedTuple):
    """One line of a forward: what it calls, and the numbers of the values that it reads."""

    function: Callable[..., Tensor]
    sources: tuple[int, ...]


class RandomNetwork(nn.Module):
    """`length` random operations or more, then a classifier.

    Attributes:
        text: the program, for the message of a test.
    """

    def __init__(self, seed: int, length: int) -> None:
        super().__init__()
        torch.manual_seed(seed)
        self.random = random.Random(seed)
        self.layers = nn.ModuleList()
        self.operations: list[Operation] = []
        self.text: list[str] = []
        self._values = [torch.zeros(1, 3, SIDE, SIDE)]
        self._layer(nn.Conv2d(3, CHANNELS, 3, padding=1), 0)
        kinds = (self._convolution, self._block, self._norm, self._function, self._sum, self._again)
        while len(self.operations) < length:
            self.random.choices(kinds, (5, 4, 3, 4, 5, 1))[0]()
        name = self.random.choice(list(ENDS))
        self.end = ENDS[name]
        self.text.append(name)
        self.linear = nn.Linear(self.end(self._values[-1]).shape[1], CLASSES)
        del self._values
        for norm in (one for one in self.modules() if isinstance(one, nn.BatchNorm2d)):
            for tensor, mean in ((norm.weight, 1.0), (norm.bias, 0.0), (norm.running_mean, 0.0)):
                nn.init.normal_(tensor, mean, 0.2)
            nn.init.uniform_(norm.running_var, 0.5, 1.5)

    def forward(self, images: Tensor) -> Tensor:
        values = [images]
        for operation in self.operations:
            values.append(operation.function(*(values[source] for source in operation.sources)))
        logits: Tensor = self.linear(self.end(values[-1]))
        return logits

    def _recent(self) -> int:
        """Return the number of one of the last values."""
        return self.random.randrange(max(1, len(self._values) - 4), len(self._values))

    def _add(self, name: str, function: Callable[..., Tensor], *sources: int) -> None:
        with torch.no_grad():
            self._values.append(function(*(self._values[source].clone() for source in sources)))
        self.operations.append(Operation(function, sources))
        self.text.append(f"{len(self._values) - 1} = {name}{sources}")

    def _layer(self, layer: nn.Module, source: int) -> None:
        self.layers.append(layer.eval())
        self._add(str(layer), layer, source)

    def _convolution(self) -> None:
        source, pick = self._recent(), self.random.choice
        channels, shortest = self._values[source].shape[1], min(self._values[source].shape[2:])
        side, dilation = pick((1, 3)), pick((1, 1, 1, 2))
        padding = pick((side // 2 * dilation, side // 2 * dilation, 0, 1))
        if shortest + 2 * padding <= dilation * (side - 1):
            return
        groups = pick((1, 1, 1, channels))
        out = channels if groups > 1 else pick((CHANNELS, CHANNELS, 2 * CHANNELS, 1))
        bias = pick((True, False))
        made = nn.Conv2d(channels, out, side, pick((1, 1, 1, 2)), padding, dilation, groups, bias)
        self._layer(made, source)

    def _block(self) -> None:
        """Add the end of a residual block: convolution, BatchNorm, mostly a sum and a ReLU."""
        source = self._recent()
        self._layer(nn.Conv2d(self._values[source].shape[1], CHANNELS, 3, padding=1, bias=False), source)
        self._norm(len(self._values) - 1)
        last = len(self._values) - 1
        alike = [number for number in range(1, last) if self._values[number].shape == self._values[-1].shape]
        if alike and self.random.random() < 0.7:
            sums = {"+": torch.add, "+=": add_to_first}
            name = self.random.choice(list(sums))
            self._add(name, sums[name], last, self.random.choice(alike))
        if self.random.random() < 0.8:
            self._function(("relu", "F.relu", "method", "in place"), len(self._values) - 1)

    def _norm(self, source: int | None = None) -> None:
        source = self._recent() if source is None else source
        self._layer(nn.BatchNorm2d(self._values[source].shape[1]), source)

    def _function(self, names: tuple[str, ...] = (*ALONE, *POOLED), source: int | None = None) -> None:
        name = self.random.choice(names)
        self._add(name, (ALONE | POOLED)[name], self._recent() if source is None else source)

    def _sum(self) -> None:
        """Add a sum of any two values that have one, of one shape or not; or a product, which is no chain."""
        one = self._recent()
        others = [number for number in range(1, len(self._values)) if self._can_be_summed(one, number)]
        pair = [one, self.random.choice(others)]
        self.random.shuffle(pair)
        name = self.random.choices(list(SUMS), (4, 4, 1))[0]
        self._add(name, SUMS[name], *pair)

    def _can_be_summed(self, one: int, other: int) -> bool:
        sides = zip(self._values[one].shape, self._values[other].shape, strict=True)
        return all(length == side or 1 in (length, side) for length, side in sides)

    def _again(self) -> None:
        """Call a layer once more, where another value has its channels."""
        layer, source = self.random.choice(list(self.layers)), self._recent()
        x = self._values[source]
        fits = x.shape[1] == (layer.in_channels if isinstance(layer, nn.Conv2d) else layer.num_features)
        if fits and (isinstance(layer, nn.BatchNorm2d) or min(x.shape[2:]) > 2 * layer.dilation[0]):
            self._add(f"{layer} again", layer, source)
