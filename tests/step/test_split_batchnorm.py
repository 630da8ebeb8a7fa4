"""One pass that counts for several, and one batch that holds several."""

import copy

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from fastpeer.step.split_batchnorm import batchnorms, count_batches, set_updates, split_batchnorms


def make_network(**options):
    torch.manual_seed(0)
    layers = nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4, **options), nn.ReLU(), nn.BatchNorm2d(4, momentum=0.3)
    return nn.Sequential(*layers).double()


@pytest.fixture
def network():
    return make_network()


def images(seed):
    return torch.randn(4, 3, 8, 8, generator=torch.Generator().manual_seed(seed)).double()


def assert_same_buffers(ours, theirs):
    torch.testing.assert_close(dict(ours.named_buffers()), dict(theirs.named_buffers()), rtol=0, atol=1e-14)


@pytest.mark.parametrize("times", [1, 2, 3])
def test_counted_pass_moves_all_buffers_as_so_many_passes_do(network, times):
    literal = copy.deepcopy(network)
    assert split_batchnorms(network)
    set_updates(network, (0,) * times)
    for seed in range(2):
        for _ in range(times):
            expected = literal(images(seed))
        assert torch.equal(network(images(seed)), expected)
    assert_same_buffers(network, literal)


@pytest.mark.parametrize("updates", [(0, 0, 1), (0, 1, 1), (0, 1, 0), (1, 0), (1, 0, 0, 1), (0, 2, 1, 0)])
def test_a_batch_of_parts_is_normalised_as_batches_in_their_order(network, updates):
    literal = copy.deepcopy(network)
    assert split_batchnorms(network)
    set_updates(network, updates)
    numbers = range(1 + max(updates))
    both = torch.cat([images(number) for number in numbers]).requires_grad_()
    out = network(both)
    leaves = [images(number).requires_grad_() for number in numbers]
    expected = {number: literal(leaves[number]) for number in updates}
    torch.testing.assert_close(out, torch.cat([expected[number] for number in numbers]), rtol=0, atol=1e-14)
    assert_same_buffers(network, literal)
    weights = torch.randn_like(out)
    gradient = torch.autograd.grad((out * weights).sum(), both)[0]
    parts = [
        torch.autograd.grad((expected[number] * weights.chunk(len(numbers))[number]).sum(), leaves[number])[0]
        for number in numbers
    ]
    torch.testing.assert_close(gradient, torch.cat(parts), rtol=0, atol=1e-13)


def test_batches_are_counted_together_as_layer_by_layer(network):
    """Also of a layer that runs twice in a forward, and of one that does not run at all."""
    odd = nn.ModuleDict({"conv": nn.Conv2d(3, 3, 1), "norm": nn.BatchNorm2d(3), "idle": nn.BatchNorm2d(3)})
    odd.forward = lambda x: odd["norm"](odd["norm"](odd["conv"](x)))
    for one in (network, odd.double()):
        literal = copy.deepcopy(one)
        if one is odd:
            literal.forward = lambda x, net=literal: net["norm"](net["norm"](net["conv"](x)))
        assert split_batchnorms(one)
        set_updates(one, (0, 0), counts=False)
        one(images(0))
        count_batches(one)
        count_batches(one)
        for _ in range(2):
            literal(images(0))
        counters = [[norm.num_batches_tracked.item() for norm in batchnorms(net)] for net in (one, literal)]
        assert counters[0] == counters[1]


@st.composite
def update_sequences(draw):
    """Draw numbers of parts in which each from 0 to the greatest stands at least once."""
    count = draw(st.integers(1, 4))
    more = draw(st.lists(st.integers(0, count - 1), max_size=6))
    return tuple(draw(st.permutations([*range(count), *more])))


@given(
    passes=st.lists(update_sequences(), min_size=1, max_size=3),
    momentum=st.sampled_from([0.1, 0.01, 0.9, 1.0, 0.0]),
    affine=st.booleans(),
)
def test_any_sequence_of_updates_is_that_of_plain_passes(passes, momentum, affine):
    network = make_network(momentum=momentum, affine=affine)
    literal = copy.deepcopy(network)
    assert split_batchnorms(network)
    for updates in passes:
        set_updates(network, updates)
        out = network(torch.cat([images(number) for number in range(1 + max(updates))]))
        expected = {number: literal(images(number)) for number in updates}
        numbers = range(1 + max(updates))
        torch.testing.assert_close(out, torch.cat([expected[one] for one in numbers]), rtol=0, atol=1e-13)
    assert_same_buffers(network, literal)
    tracked = [norm.num_batches_tracked.item() for norm in batchnorms(network)]
    assert tracked == [sum(map(len, passes))] * 2


@pytest.mark.parametrize("updates", [(0, 0), (0, 1, 0)])
def test_without_running_statistics_there_is_nothing_to_move(updates):
    network = make_network(track_running_stats=False)
    literal = copy.deepcopy(network)
    assert split_batchnorms(network)
    set_updates(network, updates)
    numbers = range(1 + max(updates))
    out = network(torch.cat([images(number) for number in numbers]))
    expected = {number: literal(images(number)) for number in updates}
    torch.testing.assert_close(out, torch.cat([expected[one] for one in numbers]), rtol=0, atol=1e-13)
    assert_same_buffers(network, literal)


@pytest.mark.parametrize(
    ("kind", "shape"),
    [(nn.BatchNorm1d, (4, 3)), (nn.BatchNorm1d, (4, 3, 5)), (nn.BatchNorm3d, (4, 3, 2, 2, 2))],
)
def test_all_dimensions_count(kind, shape):
    network, literal = (nn.Sequential(kind(3)).double() for _ in range(2))
    assert split_batchnorms(network)
    assert isinstance(network[0], kind)
    set_updates(network, (0, 1, 0))
    first, second = (torch.randn(shape).double() for _ in range(2))
    network(torch.cat([first, second]))
    for one in (first, second, first):
        literal(one)
    assert_same_buffers(network, literal)


def test_weights_keep_their_names_and_eval_mode_its_results(network):
    names, expected = list(network.state_dict()), network.eval()(images(0))
    before = copy.deepcopy(network.state_dict())
    assert split_batchnorms(network)
    assert split_batchnorms(network)
    for updates in ((0, 0, 1), (0, 1, 0)):
        set_updates(network, updates)
        assert list(network.state_dict()) == names
        assert torch.equal(network(images(0)), expected)
    assert all(torch.equal(before[name], one) for name, one in network.state_dict().items())
    assert all(isinstance(norm, nn.BatchNorm2d) for norm in batchnorms(network))


class Own(nn.BatchNorm2d):
    """Whose forward might do anything."""


@pytest.mark.parametrize("odd", [Own(4), nn.BatchNorm2d(4, momentum=None), nn.SyncBatchNorm(4)])
def test_where_one_cannot_count_all_stay_as_they_are(odd):
    network = nn.Sequential(nn.BatchNorm2d(3), nn.Conv2d(3, 4, 1), odd)
    kinds = [type(module) for module in network]
    assert not split_batchnorms(network)
    assert [type(module) for module in network] == kinds
    # No one is told what nobody would heed.
    set_updates(network, (0, 1))
    assert not any(hasattr(norm, "updates") for norm in batchnorms(network))


def test_a_network_without_batchnorm_counts_at_once():
    assert split_batchnorms(nn.Sequential(nn.Conv2d(3, 4, 1)))


def test_cumulative_statistics_set_later_are_refused(network):
    assert split_batchnorms(network)
    batchnorms(network)[0].momentum = None
    with pytest.raises(ValueError, match="momentum=None"):
        network(images(0))
