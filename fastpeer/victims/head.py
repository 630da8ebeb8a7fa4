"""The last layers of a chain that one kernel runs forward and back: average pooling, classifier and loss."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import pairwise

from fastpeer.victims.chain_steps import ApplyLinear, ApplyRelu, Mean, Reshape, Step
from fastpeer.victims.folding import FoldedLinear

PLANE = {2, 3}
"""Dimensions of a plane of (B, C, H, W)."""


@dataclass(frozen=True)
class Head:
    """What comes after the last feature map.

    Attributes:
        before: the steps that lead to the features; where these come from a ReLU, the head applies its mask.
        features: number of the last feature map.
        linear: the classifier.
        relu: whether the last of these steps ends in a ReLU.
    """

    before: list[Step]
    features: int
    linear: FoldedLinear
    relu: bool


def head_of(steps: Sequence[Step]) -> Head | None:
    """Return a chain's head, if it ends in means over planes and a linear layer, and nothing else."""
    ends = [step for step in steps[-3:] if isinstance(step, (Mean, Reshape, ApplyLinear))]
    before, kinds = list(steps[: -len(ends)]) if ends else [], [type(step) for step in ends]
    mean, linear = ends[0] if ends else None, steps[-1]
    if kinds not in ([Mean, ApplyLinear], [Mean, Reshape, ApplyLinear]) or not before:
        return None
    assert isinstance(mean, Mean)
    assert isinstance(linear, ApplyLinear)
    last = before[-1]
    if {dim % 4 for dim in mean.dims} != PLANE or not _alone(mean, last, steps) or not _joined(ends):
        return None
    # A ReLU that is a step of its own is masked by itself.
    relu = last.relu and not isinstance(last, ApplyRelu)
    return Head([*before[:-1], replace(last, masked=last.masked or relu)], last.result, linear.linear, relu)


def _alone(mean: Mean, last: Step, steps: Sequence[Step]) -> bool:
    """Tell whether the means are the only step that reads what the last step before them writes."""
    readers = [step for step in steps if last.result in step.sources]
    return readers == [mean]


def _joined(ends: Sequence[Step]) -> bool:
    """Tell whether each step reads what the one before it writes."""
    return all(one.result == behind.source for one, behind in pairwise(ends))
