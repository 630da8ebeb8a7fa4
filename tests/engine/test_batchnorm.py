"""One pass that counts for several, and one batch that holds several."""

import copy

import pytest
import torch
from torch import nn

from fastpeer.engine.batchnorm import batchnorms, let_count, set_counts


@pytest.fixture
def network():
    torch.manual_seed(0)
    layers = nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.BatchNorm2d(4, momentum=0.3)
    return nn.Sequential(*layers).double()


def images(seed):
    return torch.randn(4, 3, 8, 8, generator=torch.Generator().manual_seed(seed)).double()


def assert_same_buffers(ours, theirs):
    torch.testing.assert_close(dict(ours.named_buffers()), dict(theirs.named_buffers()), rtol=0, atol=1e-14)


@pytest.mark.parametrize("times", [1, 2, 3])
def test_counted_pass_moves_all_buffers_as_so_many_passes_do(network, times):
    literal = copy.deepcopy(network)
    let_count(network)
    set_counts(network, (times,))
    for seed in range(2):
        for _ in range(times):
            expected = literal(images(seed))
        assert torch.equal(network(images(seed)), expected)
    assert_same_buffers(network, literal)


def test_a_batch_of_two_parts_is_normalised_as_two_batches_in_their_order(network):
    literal = copy.deepcopy(network)
    let_count(network)
    set_counts(network, (2, 1))
    both = torch.cat([images(0), images(1)]).requires_grad_()
    out = network(both)
    leaves = [images(seed).requires_grad_() for seed in (0, 0, 1)]
    expected = [literal(leaf) for leaf in leaves]
    torch.testing.assert_close(out, torch.cat(expected[1:]), rtol=0, atol=1e-14)
    assert_same_buffers(network, literal)
    weights = torch.randn_like(out)
    gradient = torch.autograd.grad((out * weights).sum(), both)[0]
    parts = [torch.autograd.grad((one * w).sum(), leaf)[0]
             for one, leaf, w in zip(expected[1:], leaves[1:], weights.chunk(2), strict=True)]  # fmt: skip
    torch.testing.assert_close(gradient, torch.cat(parts), rtol=0, atol=1e-13)


def test_weights_keep_their_names_and_eval_mode_its_results(network):
    names, expected = list(network.state_dict()), network.eval()(images(0))
    let_count(network)
    let_count(network)
    set_counts(network, (2, 1))
    assert list(network.state_dict()) == names
    assert torch.equal(network(images(0)), expected)
    assert all(isinstance(norm, nn.BatchNorm2d) for norm in batchnorms(network))


def test_cumulative_statistics_are_refused():
    norm = nn.Sequential(nn.BatchNorm2d(4, momentum=None))
    let_count(norm)
    with pytest.raises(ValueError, match="momentum=None"):
        norm(torch.rand(2, 4, 3, 3))


def test_a_class_of_its_own_is_refused():
    class Own(nn.BatchNorm2d):
        pass

    with pytest.raises(ValueError, match="Own"):
        let_count(nn.Sequential(Own(4)))
