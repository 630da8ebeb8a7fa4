"""What other people's weight files call things, and what fastpeer's networks do."""

from collections.abc import Mapping

import torch
from torch import Tensor

MEANS = {"mean": "std", "mu": "sigma", "new_mean": "new_std"}
"""Names that files have for an input's normalisation."""
ATTACKER = "attacker."
UNUSED = "sub_block1."
CLASSIFIERS = ("linear.", "fc.")

Record = tuple[tuple[float, ...], tuple[float, ...]]
"""Mean and std of an input's normalisation, one number each or three."""


def renamed(weights: Mapping[str, Tensor], expected: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Give a file's tensors the names that a network has for them, as far as there is no doubt.

    Undone are prefixes that all names share, and another name of the classifier. Left out are the numbers of
    an input's normalisation, a second copy of the network that attacks the first, and a block of the
    released wide ResNets that is declared but never run. What is missing stays missing, but for counters
    that old files lack.
    """
    own = {name.removeprefix("module."): tensor for name, tensor in weights.items()}
    if not own.keys() & expected.keys():
        own = _without_prefixes(_one_network(_without_record(own)), expected)
    left_out = {*record_names(own), *(name for name in own if name.startswith(UNUSED))} - expected.keys()
    own = {name: tensor for name, tensor in own.items() if name not in left_out}
    own = _with_the_classifiers_name(own, expected)
    return _with_counters(own, expected)


def recorded(weights: Mapping[str, Tensor]) -> Record | None:
    """Return the normalisation that a file's tensors record; two that differ count as none."""
    found = {(_numbers(weights[mean]), _numbers(weights[std])) for mean, std in _record_pairs(weights)}
    return found.pop() if len(found) == 1 else None


def _without_record(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    names = set(record_names(weights))
    return {name: tensor for name, tensor in weights.items() if name not in names}


def record_names(weights: Mapping[str, Tensor]) -> list[str]:
    """Names of all tensors that look like the mean and std of an input's normalisation."""
    return [name for pair in _record_pairs(weights) for name in pair]


def _record_pairs(weights: Mapping[str, Tensor]) -> list[tuple[str, str]]:
    """Names of means and stds that lie side by side and have one number, or one for each colour."""
    pairs = []
    for name in weights:
        prefix, dot, last = name.rpartition(".")
        beside = f"{prefix}{dot}{MEANS.get(last)}"
        if beside in weights and all(_is_record(weights[one]) for one in (name, beside)):
            pairs.append((name, beside))
    return pairs


def _is_record(tensor: Tensor) -> bool:
    return tensor.is_floating_point() and tensor.numel() in (1, 3) and bool(tensor.isfinite().all())


def _numbers(tensor: Tensor) -> tuple[float, ...]:
    """Return a tensor's numbers as people wrote them: 0.4914, not float32's 0.49140000343322754."""
    own = tensor if tensor.dtype in (torch.float16, torch.float64) else tensor.float()
    return tuple(float(str(value)) for value in own.flatten().numpy())


def _one_network(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Leave out the attacker's copy of a network, if it is one."""
    own = {name: tensor for name, tensor in weights.items() if not name.startswith(ATTACKER)}
    copies = {name.removeprefix(ATTACKER): one for name, one in weights.items() if name not in own}
    same = copies.keys() == own.keys() and all(torch.equal(own[name], copies[name]) for name in own)
    return own if same else dict(weights)


def _without_prefixes(weights: dict[str, Tensor], expected: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Drop the first levels that all names share, until they meet the network's."""
    stripped = weights
    while stripped and not stripped.keys() & expected.keys():
        first = next(iter(stripped)).partition(".")[0] + "."
        if not all(name.startswith(first) for name in stripped):
            return weights
        stripped = {name.removeprefix(first): tensor for name, tensor in stripped.items()}
    return stripped


def _with_the_classifiers_name(
    weights: dict[str, Tensor], expected: Mapping[str, Tensor]
) -> dict[str, Tensor]:
    for ours, theirs in (CLASSIFIERS, CLASSIFIERS[::-1]):
        has_ours = any(name.startswith(ours) for name in weights)
        if f"{ours}weight" in expected and f"{theirs}weight" not in expected and not has_ours:
            return {
                ours + name.removeprefix(theirs) if name.startswith(theirs) else name: tensor
                for name, tensor in weights.items()
            }
    return weights


def _with_counters(weights: dict[str, Tensor], expected: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Keep the network's own counters of batches, which PyTorch before 0.4.1 did not save."""
    own = {name: one for name, one in expected.items() if name.endswith(".num_batches_tracked")}
    return {**own, **weights} if weights else weights
