"""The table of natural training; the engine's tests hold PeerAiD's against the released step."""

import copy

import torch

from fastpeer.config import Config
from fastpeer.data.stream import Batch
from fastpeer.models import build_model
from fastpeer.step.step import TrainingStep


def test_natural_training_is_cross_entropy_on_clean_images():
    torch.manual_seed(0)
    ours = build_model("resnet8", 5).double()
    theirs = copy.deepcopy(ours)
    batch = Batch(torch.rand(4, 3, 8, 8).double(), torch.arange(4))

    config = Config(method="natural", precision="fp64")
    method = config.table
    assert not method.attacks
    TrainingStep(config, method, {"student": ours}).train_on(batch, 0)

    optimizer = torch.optim.SGD(theirs.parameters(), lr=0.1, momentum=0.9, weight_decay=2e-4)
    torch.nn.functional.cross_entropy(theirs(batch.images), batch.labels).backward()
    optimizer.step()
    torch.testing.assert_close(ours.state_dict(), theirs.state_dict(), rtol=0, atol=1e-13)
