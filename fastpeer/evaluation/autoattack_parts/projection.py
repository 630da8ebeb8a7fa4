"""The shortest way onto a hyperplane that stays among images, in L-infinity and L2.

Croce and Hein, ICML 2020, "Minimally distorted adversarial examples with a fast adaptive boundary attack".

In L-infinity every pixel goes the same length, or as far as the edge of [0, 1] lets it. What a length
reaches is a concave and piecewise linear function of it, so Newton's method from 0 is exact as soon as no
further pixel comes to its edge: after a handful of passes. The official code sorts all pixels by their
distance to the edge.
"""

import torch
from pyautoattack.fab_projections import projection_l2
from torch import Tensor

shortest_way_l2 = projection_l2


def shortest_way_linf(points: Tensor, normals: Tensor, offsets: Tensor) -> Tensor:
    """Return the ways (N, D) from points to normal · x = offset, shortest in L-infinity, within [0, 1].

    Where the hyperplane lies beyond all images, the way to the corner that is nearest to it.

    Args:
        points: (N, D), in [0, 1].
        normals: (N, D).
        offsets: (N,).
    """
    excess = (normals * points).sum(1) - offsets
    direction = normals.sign() * torch.where(excess >= 0, -1, 1).to(points.dtype).unsqueeze(1)
    room = torch.where(direction > 0, 1 - points, points) * direction.abs()
    return torch.minimum(_length(normals.abs(), room, excess.abs()).unsqueeze(1), room) * direction


def _length(weights: Tensor, room: Tensor, excess: Tensor) -> Tensor:
    """Return the lengths (N,) at which the sum of weight · min(length, room) is the excess; inf: never."""
    at_most, free = weights * room, room > 0
    missing, count = excess - at_most.sum(1), int(free.sum())
    while True:
        slope = (weights * free).sum(1)
        length = torch.where(slope > 0, (missing + (at_most * free).sum(1)) / slope, torch.inf).clamp(min=0)
        free &= room > length.unsqueeze(1)
        before, count = count, int(free.sum())
        if count == before:
            return length
