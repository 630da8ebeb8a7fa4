"""The logits of images that change in a window: of the first layers, only what it reaches is computed.

A convolution's result depends on a few pixels around each place. Behind a window of 3×3 pixels, the first
layer changes in 5×5 places, the next in 7×7; where that is most of a layer, all of it is computed.
"""

import math
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from fastpeer.victims.chain import Chain
from fastpeer.victims.chain_steps import Add, ApplyRelu, Convolve, Normalise, NormaliseInput, Step
from fastpeer.victims.folding import FoldedConv2d
from fastpeer.victims.onednn import OnednnConvolutions

Span = tuple[int, int]
"""First place, and the place behind the last one, along one side of a plane."""
Window = tuple[Span, Span]
"""Rows and columns."""
LARGEST_SHARE = 0.6
"""Of a layer's places: where a window reaches more, all are computed."""
LOCAL = (Convolve, Normalise, NormaliseInput, Add, ApplyRelu)
"""Steps whose result at a place depends on what is around that place alone."""


def windowed_logits(chain: Chain, images: Tensor, side: int) -> "WindowedLogits | None":
    """Return the logits of images that change in windows; None, where all has to be computed anyway.

    Args:
        chain: computes them in float32; for now with oneDNN's convolutions only.
        images: (B, 3, H, W), as they are at first.
        side: the largest height or width of a window.
    """
    if not isinstance(chain.convolutions, OnednnConvolutions) or not len(images):
        return None
    found = WindowedLogits(chain, chain.convolutions, images, side)
    return found if found.steps else None


class WindowedLogits:
    """Logits of what becomes of images when a window of each changes; see `windowed_logits`.

    Attributes:
        steps: of the chain, those that are computed in part.
    """

    def __init__(self, chain: Chain, convolutions: OnednnConvolutions, images: Tensor, side: int) -> None:
        self.chain, self.convolutions = chain, convolutions
        # A copy, for it is changed in place.
        values = chain.forward(images.clone(memory_format=torch.channels_last))
        self._sides = {chain.images_number: (side, side)}
        self.steps = _reached_in_part(chain.steps, values, self._sides)
        self._held = {number: values[number] for number in self._sides}
        self._former: list[tuple[Tensor, Tensor]] = []

    def __len__(self) -> int:
        """Return the number of images."""
        return len(self._held[self.chain.images_number])

    def change(self, window: Window, pixels: Tensor) -> Tensor:
        """Put pixels (B, 3, h, w) into a window of the images; return the logits (B, C)."""
        windows = {self.chain.images_number: window}
        self._former = []
        self._put(self.chain.images_number, window, pixels)
        for step in self.steps:
            region = _region(step, windows, self._sides[step.result], self._held[step.result])
            self._put(step.result, region, self._computed(step, region))
            windows[step.result] = region
        values = dict(self._held)
        for step in self.chain.steps[len(self.steps) :]:
            values[step.result] = step.forward(values)
        return values[self.chain.logits_number]

    def take_back(self, rows: Tensor) -> None:
        """Undo the last change of some of the images, bool (B,)."""
        for place, former in self._former:
            place[rows] = former[rows]

    def only(self, rows: Tensor) -> None:
        """Go on with some of the images, bool (B,)."""
        self._held = {number: value[rows] for number, value in self._held.items()}

    def _put(self, number: int, window: Window, found: Tensor) -> None:
        place = _part(self._held[number], window)
        self._former.append((place, place.clone()))
        place.copy_(found)

    def _computed(self, step: Step, region: Window) -> Tensor:
        """Return a step's result in a region."""
        held = self._held
        if not isinstance(step, Convolve):
            return step.forward({number: _part(held[number], region) for number in step.sources})
        residual = None if step.residual is None else _in_memory(_part(held[step.residual], region))
        patch = _patch(held[step.source], step.conv, region)
        return self.convolutions.unpadded(step.conv, patch, residual, step.relu)


def _reached_in_part(
    steps: Sequence[Step], values: Mapping[int, Tensor], sides: dict[int, tuple[int, int]]
) -> list[Step]:
    """Return the first steps that a window reaches only in part; add height and width of what it reaches."""
    found: list[Step] = []
    for step in steps:
        dense = not isinstance(step, Convolve) or step.conv.groups == 1
        local = isinstance(step, LOCAL) and dense and not step.broadcasts(values)
        if not local or values[step.result].dtype != torch.float32:
            break
        planes = values[step.result].shape[2:]
        height, width = (min(_most_reached(step, sides, axis), limit) for axis, limit in enumerate(planes))
        if height * width > LARGEST_SHARE * math.prod(planes):
            break
        sides[step.result] = (height, width)
        found.append(step)
    return found


def _most_reached(step: Step, sides: Mapping[int, tuple[int, int]], axis: int) -> int:
    return max(_reached(step, source, (0, sides[source][axis]), axis)[2] for source in step.sources)


def _reached(step: Step, source: int, span: Span, axis: int) -> tuple[int, int, int]:
    """Return what places of a step's result a span of a source reaches: first, behind the last, most.

    The last is how many a span of this length can reach wherever it is.
    """
    first, end = span
    if not isinstance(step, Convolve) or source != step.source:
        return first, end, end - first
    conv = step.conv
    stride, padding = conv.stride[axis], conv.padding[axis]
    around = conv.dilation[axis] * (conv.weight.shape[2 + axis] - 1)
    most = (end - first - 1 + around) // stride + 1
    return -((around - padding - first) // stride), (end - 1 + padding) // stride + 1, most


def _region(step: Step, windows: Mapping[int, Window], sides: tuple[int, int], result: Tensor) -> Window:
    """Return the places of a step's result that changed windows reach.

    As many wherever the windows are, if possible: oneDNN packs weights for each size.
    """
    rows, columns = (
        _span([_reached(step, source, windows[source][axis], axis) for source in step.sources], side, limit)
        for axis, (side, limit) in enumerate(zip(sides, result.shape[2:], strict=True))
    )
    return rows, columns


def _span(reached: Sequence[tuple[int, int, int]], side: int, limit: int) -> Span:
    first = max(min(begin for begin, _, _ in reached), 0)
    end = min(max(end for _, end, _ in reached), limit)
    first = max(min(first, limit - side), 0)
    return first, max(end, first + side)


def _part(planes: Tensor, window: Window) -> Tensor:
    return planes[:, :, slice(*window[0]), slice(*window[1])]


def _patch(planes: Tensor, conv: FoldedConv2d, region: Window) -> Tensor:
    """Return what a convolution reads for a region of its result, with the zeros around the planes."""
    spans, zeros = [], []
    for axis, (first, last) in enumerate(region):
        begin = first * conv.stride[axis] - conv.padding[axis]
        around = conv.dilation[axis] * (conv.weight.shape[2 + axis] - 1)
        end = (last - 1) * conv.stride[axis] - conv.padding[axis] + around + 1
        limit = planes.shape[2 + axis]
        spans.append((max(begin, 0), min(end, limit)))
        zeros.append((max(-begin, 0), max(end - limit, 0)))
    patch = _part(planes, (spans[0], spans[1]))
    return _in_memory(F.pad(patch, (*zeros[1], *zeros[0])) if any(map(any, zeros)) else patch)


def _in_memory(planes: Tensor) -> Tensor:
    return planes.contiguous(memory_format=torch.channels_last)
