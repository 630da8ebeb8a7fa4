"""The network of the runs that are kept here: as small as one that can be trained."""

from torch import Tensor, nn


class Tiny(nn.Sequential):
    """A convolution, BatchNorm and a linear layer for images of 8×8 pixels."""

    def __init__(self, num_classes: int) -> None:
        super().__init__(
            nn.Conv2d(3, 4, 3, stride=2, padding=1, bias=False),
            nn.BatchNorm2d(4),
            nn.ReLU(),
            nn.Flatten(),
            nn.Linear(64, num_classes),
        )

    def forward(self, images: Tensor) -> Tensor:
        """Return logits (B, C) of images (B, 3, 8, 8)."""
        logits: Tensor = super().forward(images)
        return logits
