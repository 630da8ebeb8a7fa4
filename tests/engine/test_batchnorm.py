"""One pass that counts for several."""

import copy

import pytest
import torch
from torch import nn

from fastpeer.engine.batchnorm import batchnorms, counted


@pytest.fixture
def network():
    torch.manual_seed(0)
    layers = nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.BatchNorm2d(4, momentum=0.3)
    return nn.Sequential(*layers).double()


@pytest.mark.parametrize("times", [1, 2, 3])
def test_counted_pass_moves_all_buffers_as_so_many_passes_do(network, times):
    literal = copy.deepcopy(network)
    for seed in range(2):
        images = torch.randn(4, 3, 8, 8, generator=torch.Generator().manual_seed(seed)).double()
        for _ in range(times):
            expected = literal(images)
        with counted(network, times):
            assert torch.equal(network(images), expected)
    torch.testing.assert_close(
        dict(network.named_buffers()), dict(literal.named_buffers()), rtol=0, atol=1e-14
    )


def test_momentum_is_restored_also_after_an_error(network):
    def fail():
        with counted(network, 2):
            raise RuntimeError

    with pytest.raises(RuntimeError):
        fail()
    assert [norm.momentum for norm in batchnorms(network)] == [0.1, 0.3]


def test_cumulative_statistics_are_refused():
    with pytest.raises(ValueError, match="momentum=None"), counted(nn.BatchNorm2d(4, momentum=None), 2):
        pass
