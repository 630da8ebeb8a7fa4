"""Weight averaging, compared with the literal transcription of the released code."""

import torch

from fastpeer.data.stream import Batch
from fastpeer.models import build_model
from fastpeer.step.precision import number_format
from fastpeer.step.split_batchnorm import batchnorms
from fastpeer.training.averaging import AveragedStudent
from tests.literal.peeraid_training import LiteralSWA


def student(seed):
    torch.manual_seed(seed)
    return build_model("resnet8", 5).double()


def assert_close(ours, theirs):
    # The number of batches has no effect where BatchNorm has a momentum.
    states = [
        {name: value for name, value in network.state_dict().items() if "num_batches" not in name}
        for network in (ours, theirs)
    ]
    torch.testing.assert_close(*states, rtol=0, atol=1e-12)


def test_average_of_three_students_and_its_statistics_are_the_released_codes():
    random = torch.Generator().manual_seed(0)
    batches = [
        Batch(torch.rand(size, 3, 8, 8, generator=random).double(), torch.zeros(size).long())
        for size in (8, 5, 1, 3)
    ]
    ours, literal = AveragedStudent(student(9), number_format("fp64")), LiteralSWA()
    for seed in range(3):
        ours.collect(student(seed))
        literal.collect(student(seed))
        ours.reestimate(batches)
        literal.bn_update([(batch.images, batch.labels) for batch in batches])
        assert_close(ours.network, literal.model)
    assert ours.count == 3
    assert {norm.momentum for norm in batchnorms(ours.network)} == {0.1}
