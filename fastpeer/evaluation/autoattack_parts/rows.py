"""The images of a batch that still stand, a row for each, and those that fell."""

from dataclasses import dataclass, fields

import torch
from torch import Tensor


@dataclass
class Rows:
    """What every attack keeps of its images; all fields, those of derived classes too, are tensors (B, …).

    Attributes:
        place: in the batch.
        image: clean, (B, 3, H, W).
        label: int64 (B,).
        at: where the attack is, (B, 3, H, W).
    """

    place: Tensor
    image: Tensor
    label: Tensor
    at: Tensor


class Fallen:
    """What an attack found for a batch.

    Args:
        images: clean (B, 3, H, W).

    Attributes:
        images: adversarial for those that fell.
        rows: bool (B,): which fell.
    """

    def __init__(self, images: Tensor) -> None:
        self.images = images.clone()
        self.rows = torch.zeros(len(images), dtype=torch.bool, device=images.device)

    @property
    def standing(self) -> Tensor:
        """Places, int64, of the images that have not fallen."""
        return (~self.rows).nonzero().squeeze(1)

    def take(self, rows: Rows, fell: Tensor) -> bool:
        """Take the rows that fell, bool (B,), out; return whether any is left."""
        if fell.any():
            places = rows.place[fell]
            self.images[places], self.rows[places] = rows.at[fell], True
            for field in fields(rows):
                setattr(rows, field.name, getattr(rows, field.name)[~fell])
        return len(rows.place) > 0
