"""The optimizer: torch.optim.SGD's weights, without the import of its compiler."""

import sys

import pytest
import torch
from torch import nn

from fastpeer.config import OptimConfig
from fastpeer.step.optimizer import sgd


def test_it_is_sgd_and_does_not_import_the_compiler(monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    network = nn.Linear(3, 2)
    reference = nn.Linear(3, 2)
    reference.load_state_dict(network.state_dict())
    images = torch.randn(5, 3)
    theirs = torch.optim.SGD(reference.parameters(), lr=0.1, momentum=0.9, weight_decay=5e-4)
    for _ in range(4):
        theirs.zero_grad()
        reference(images).square().sum().backward()
        theirs.step()

    # Importing it takes as long as importing PyTorch: None makes an import fail.
    monkeypatch.setitem(sys.modules, "torch._dynamo", None)
    optim = OptimConfig(lr=0.1, momentum=0.9, weight_decay=5e-4)
    ours = sgd([network], optim)
    for _ in range(2):
        for _ in range(2):
            ours.zero_grad(set_to_none=True)
            network(images).square().sum().backward()
            ours.step()
        state = ours.state_dict()
        ours = sgd([network], optim)
        ours.load_state_dict(state)
    for own, wanted in zip(network.parameters(), reference.parameters(), strict=True):
        torch.testing.assert_close(own, wanted, rtol=1e-6, atol=1e-7)
