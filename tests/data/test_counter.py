"""Counter-based random numbers are repeatable, and differ in every counter."""

import numpy as np
import torch

from fastpeer.data.counter import counter_key, generator, permutation


def test_keys_differ_in_seed_purpose_and_each_counter_in_its_place():
    calls = [(0, "a"), (1, "a"), (0, "b"), (0, "a", 0), (0, "a", 1), (0, "a", 0, 1), (0, "a", 1, 0)]
    keys = [counter_key(*call) for call in calls]
    assert len(set(keys)) == len(calls)
    assert keys == [counter_key(*call) for call in calls]


def test_draws_can_be_repeated_and_permutations_keep_all_indices():
    indices = np.arange(100, 200)
    order = permutation(indices, 0, "order", 3)
    assert sorted(order) == list(indices)
    assert np.array_equal(order, permutation(indices, 0, "order", 3))
    assert not np.array_equal(order, permutation(indices, 0, "order", 4))
    draws = [torch.rand(3, generator=generator(torch.device("cpu"), 2**63 - 1, "x")) for _ in range(2)]
    assert torch.equal(*draws)
