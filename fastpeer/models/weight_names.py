"""Maps the names in weight files of other repositories to those of fastpeer's networks."""

from collections.abc import Mapping

import torch
from torch import Tensor

from fastpeer.models.pixel_range import Normalization

STD_NAMES = {"mean": "std", "mu": "sigma", "new_mean": "new_std"}
"""Names of an input's mean in weight files, with the name of the std beside it."""
ATTACKER_PREFIX = "attacker."
"""Prefix of a second copy of the network, in checkpoints of a library whose attacker holds one."""
UNUSED_PREFIX = "sub_block1."
"""A block that the released wide ResNets declare but never run."""
CLASSIFIERS = ("linear.", "fc.")


def renamed(weights: Mapping[str, Tensor], expected: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Rename a file's tensors to a network's names, as far as there is no doubt.

    Prefixes that all names share are removed, and another name of the classifier is replaced. Left out are
    the mean and std of an input's normalisation, an attacker's copy of the network, and a block of the
    released wide ResNets that is declared but never run. Missing tensors stay missing, except for BatchNorm's
    counters of batches, which old files lack.

    Args:
        weights: the file's tensors, by name.
        expected: the network's state dict.
    """
    own = {name.removeprefix("module."): tensor for name, tensor in weights.items()}
    if not own.keys() & expected.keys():
        own = _without_prefixes(_without_attackers_copy(_without_normalization(own)), expected)
    unused = {*normalization_names(own), *(name for name in own if name.startswith(UNUSED_PREFIX))}
    # Except those that the network, which may be the user's own, has itself.
    unused -= expected.keys()
    own = {name: tensor for name, tensor in own.items() if name not in unused}
    own = _with_classifier_name(own, expected)
    return _with_counters(own, expected)


def normalization_in(weights: Mapping[str, Tensor]) -> Normalization | None:
    """Return the normalisation recorded among a file's tensors; None if there is none, or no single one."""
    pairs = {(_numbers(weights[mean]), _numbers(weights[std])) for mean, std in _mean_std_pairs(weights)}
    return pairs.pop() if len(pairs) == 1 else None


def _without_normalization(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    names = set(normalization_names(weights))
    return {name: tensor for name, tensor in weights.items() if name not in names}


def normalization_names(weights: Mapping[str, Tensor]) -> list[str]:
    """Return the names of all tensors that look like the mean and std of an input's normalisation."""
    return [name for pair in _mean_std_pairs(weights) for name in pair]


def _mean_std_pairs(weights: Mapping[str, Tensor]) -> list[tuple[str, str]]:
    """Return the names of means and stds with the same prefix, and one number or one for each colour."""
    pairs = []
    for name in weights:
        prefix, dot, last = name.rpartition(".")
        std = f"{prefix}{dot}{STD_NAMES.get(last)}"
        if std in weights and _is_per_channel(weights[name]) and _is_per_channel(weights[std]):
            pairs.append((name, std))
    return pairs


def _is_per_channel(tensor: Tensor) -> bool:
    return tensor.is_floating_point() and tensor.numel() in (1, 3) and bool(tensor.isfinite().all())


def _numbers(tensor: Tensor) -> tuple[float, ...]:
    """Return a tensor's numbers as they were written down: 0.4914, not float32's 0.49140000343322754."""
    # NumPy prints the shortest decimal that rounds to the same number; it has no bfloat16.
    own = tensor if tensor.dtype in (torch.float16, torch.float64) else tensor.float()
    return tuple(float(str(value)) for value in own.flatten().numpy())


def _without_attackers_copy(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Leave out an attacker's copy of the network, if it equals the network in every tensor."""
    own = {name: tensor for name, tensor in weights.items() if not name.startswith(ATTACKER_PREFIX)}
    copies = {
        name.removeprefix(ATTACKER_PREFIX): tensor for name, tensor in weights.items() if name not in own
    }
    same = copies.keys() == own.keys() and all(torch.equal(own[name], copies[name]) for name in own)
    return own if same else dict(weights)


def _without_prefixes(weights: dict[str, Tensor], expected: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Remove leading levels shared by all names, until a name is the network's; unchanged if none ever is."""
    stripped = weights
    while stripped and not stripped.keys() & expected.keys():
        first = next(iter(stripped)).partition(".")[0] + "."
        if not all(name.startswith(first) for name in stripped):
            return weights
        stripped = {name.removeprefix(first): tensor for name, tensor in stripped.items()}
    return stripped


def _with_classifier_name(weights: dict[str, Tensor], expected: Mapping[str, Tensor]) -> dict[str, Tensor]:
    for ours, theirs in (CLASSIFIERS, CLASSIFIERS[::-1]):
        has_ours = any(name.startswith(ours) for name in weights)
        if f"{ours}weight" in expected and f"{theirs}weight" not in expected and not has_ours:
            return {
                ours + name.removeprefix(theirs) if name.startswith(theirs) else name: tensor
                for name, tensor in weights.items()
            }
    return weights


def _with_counters(weights: dict[str, Tensor], expected: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Add the network's own counters of batches where they are missing: PyTorch before 0.4.1 had none."""
    own = {name: tensor for name, tensor in expected.items() if name.endswith(".num_batches_tracked")}
    return {**own, **weights} if weights else weights
