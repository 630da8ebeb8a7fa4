"""A network for tests that compile."""

import torch
from torch import nn


class OneLayer(nn.Module):
    """Compiling takes the longer, the more layers there are."""

    def __init__(self, classes):
        super().__init__()
        self.convolution = nn.Conv2d(3, 4, 3, padding=1, bias=False)
        self.norm = nn.BatchNorm2d(4)
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.linear = nn.Linear(4, classes)

    def forward(self, images):
        shown = torch.relu(self.norm(self.convolution(images)))
        return self.linear(torch.flatten(self.pool(shown), 1))
