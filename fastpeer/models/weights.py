"""Writes and reads a network's weights."""

import json
import logging
from collections.abc import Mapping
from itertools import accumulate
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor, nn

from fastpeer.errors import UserError, brief, counted, one_line
from fastpeer.models import build_model, model_names
from fastpeer.models.names import class_path
from fastpeer.models.normalized import normalization, without_normalization
from fastpeer.models.pixel_range import (
    Normalization,
    check_normalization,
    check_pixel_range,
    format_normalization,
)
from fastpeer.models.weight_checks import refuse_other_numbers
from fastpeer.models.weight_facts import WeightFacts, read_metadata, recorded_facts, sort_metadata
from fastpeer.models.weight_files import WeightSet, part_of, read_weights
from fastpeer.models.weight_names import CLASSIFIERS, normalization_in, normalization_names, renamed

log = logging.getLogger(__name__)
METADATA_KEYS = ("fastpeer.mean", "fastpeer.std")
"""Keys of the normalisation in a safetensors file's metadata, as JSON lists."""


def save_weights(network: nn.Module, path: str | Path, facts: WeightFacts | None = None) -> None:
    """Write a network's parameters and buffers as safetensors, in their dtype and in NCHW order.

    The network may be on any device. Its normalisation and the facts go into the file's metadata.

    Raises:
        UserError: the file cannot be written.
    """
    tensors = _without_shared_memory(without_normalization(network).state_dict())
    mean_std = normalization(network)
    metadata = {"format": "pt"} | (facts.metadata() if facts else {})
    if mean_std is not None:
        metadata |= dict(zip(METADATA_KEYS, map(json.dumps, mean_std), strict=True))
    path = Path(path)
    try:
        # The library makes files that nobody else may read; what the umask leaves is the user's choice.
        path.touch()
        mode = path.stat().st_mode
        save_file(tensors, path, metadata=metadata)
        path.chmod(mode)
        sort_metadata(path)
    except (OSError, SafetensorError) as error:
        raise UserError(f"{path}: cannot be written ({one_line(error)})") from None


def _without_shared_memory(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Copy tensors that share memory with others, such as tied weights: safetensors refuses them."""
    separate: dict[str, Tensor] = {}
    seen: set[int] = set()
    for name, tensor in weights.items():
        contiguous = tensor.contiguous()
        address = contiguous.untyped_storage().data_ptr()
        separate[name] = contiguous.clone() if address in seen else contiguous
        seen.add(address)
    return separate


def load_weights(
    network: nn.Module,
    path: str | Path,
    key: str = "",
    flag: str = "--weights-key",
    *,
    reset_head: int = 0,
    advice: str = "",
) -> list[str]:
    """Copy the weights in a file into a network, which keeps its dtype, memory format and device.

    Reads safetensors, and PyTorch checkpoints such as the released ones: a state dict, alone or under
    `state_dict`, `model_state_dict`, `model` or `net`. See `renamed` for how far the names may differ. Logs
    which set was taken from a file with several.

    Args:
        network: the network.
        path: the file.
        key: where the weights lie in a checkpoint with several sets of them; empty: as `read_weights` says.
        flag: the flag that names the key, for messages.
        reset_head: number of the network's classes, to leave its classification layer as it is, whatever the
            file holds for it: the last linear layer or 1x1 convolution with so many outputs, before others
            one that does not fit for its number of outputs alone, or that the file lacks. 0: load all.
        advice: what to do about a file for another number of classes, for the message.

    Returns:
        Names of the tensors that were left as they are.

    Raises:
        UserError: the file cannot be read, does not fit the network, holds numbers that are not finite or
            of another kind, or records a normalisation where this network has none. The network is then
            unchanged.
    """
    path = Path(path)
    inner = without_normalization(network)
    expected = inner.state_dict()
    found = read_weights(path, key, flag)
    weights = renamed(found.tensors, expected)
    head = _head(path, inner, expected, weights, reset_head) if reset_head else []
    weights |= {name: expected[name] for name in head}
    mismatches = _mismatches(expected, weights)
    if mismatches:
        first = one_line("; ".join(mismatches[:2]))
        other = _other_classes(inner, expected, weights)
        # Only where nothing but a weight and a bias stands in the way.
        advice = advice if other and len(mismatches) <= 2 else ""
        why = (
            other
            + advice
            + (_fitting_parts(found.tensors, expected, flag) or _other_network(path, found.tensors, expected))
        )
        raise UserError(f"{path}: weights do not fit: {counted(len(mismatches), 'tensor')} ({first}){why}")
    refuse_other_numbers(path, expected, weights)
    own = normalization(network)
    if own is None:
        _refuse_ignored_normalization(path, found.tensors, expected)
    else:
        foreign = {name: tensor for name, tensor in found.tensors.items() if name not in expected}
        _report_other_normalization(path, foreign, own)
    _report_choice(path, found, flag)
    inner.load_state_dict(weights)
    return head


def recorded_normalization(path: str | Path, network: str, key: str = "") -> Normalization | None:
    """Return the mean and std of the normalisation that a weight file records; None if it records none.

    Each has one number, or one for each channel. They are in the metadata of files written by `save_weights`,
    and among the weights in many released files: `mu` and `sigma`, or `mean` and `std`, with any prefix.

    Args:
        path: the weight file.
        network: name of the network it is for. For the user's own classes, tensors among the weights are not
            looked at: the class loads them itself.
        key: see `load_weights`.

    Raises:
        UserError: the file cannot be read, or its normalisation is for pixels from 0 to 255.
    """
    path = Path(path)
    recorded = metadata_normalization(path)
    if recorded is not None or class_path(network):
        return recorded
    recorded = normalization_in(read_weights(path, key).tensors)
    try:
        check_normalization(*recorded or ((), ()))
        check_pixel_range(*recorded or ((), ()))
    except ValueError as error:
        raise UserError(f"{path}: its network normalises images itself: {error}; set them") from None
    return recorded


def recorded_network(path: str | Path, flag: str, confirmed: str = "") -> str:
    """Return the name of the network that a file with weights is for; empty if it does not tell.

    Args:
        path: the weight file.
        flag: names the network, for the message.
        confirmed: a network that the user named.

    Raises:
        UserError: there is no such file, or it names a class of the user's, which is not imported because a
            file says so: importing runs code.
    """
    network = recorded_facts(path).network
    if class_path(network) and network != confirmed:
        raise UserError(f"{path} is for {network}, a class of your own: confirm it with {flag} {network}")
    return network


def _report_choice(path: Path, found: WeightSet, flag: str) -> None:
    if found.others:
        others = " or ".join(f"{flag} {other}" for other in found.others)
        log.info("%s: took the weights under %s; others: %s", path, found.key, others)


def _report_other_normalization(path: Path, read: Mapping[str, Tensor], own: Normalization) -> None:
    recorded = normalization_beside(path, read)
    if recorded is not None and _per_channel(recorded) != _per_channel(own):
        numbers = format_normalization(recorded), format_normalization(own)
        log.warning("%s: records a normalisation by %s, its network is given %s", path, *numbers)


def _per_channel(recorded: Normalization) -> list[tuple[float, ...]]:
    return [numbers if len(numbers) > 1 else numbers * 3 for numbers in recorded]


def _refuse_ignored_normalization(
    path: Path, read: Mapping[str, Tensor], expected: Mapping[str, Tensor]
) -> None:
    """Refuse weights trained with a normalisation that this network would not apply: accuracy would drop."""
    ignored = [name for name in normalization_names(read) if name.removeprefix("module.") not in expected]
    if ignored or metadata_normalization(path):
        recorded = normalization_beside(path, read)
        numbers = format_normalization(recorded) if recorded else ignored[0]
        raise UserError(
            f"{path}: its network normalises images itself ({numbers}), this one does not: set mean and std,"
            " for instance with --model.mean and --model.std"
        )


def metadata_normalization(path: Path) -> Normalization | None:
    """Return the normalisation that `save_weights` wrote.

    Raises:
        UserError: there is no such file, or something else stands in its place.
    """
    metadata = read_metadata(path)
    if not metadata.keys() & set(METADATA_KEYS):
        return None
    try:
        mean, std = (tuple(float(number) for number in json.loads(metadata[name])) for name in METADATA_KEYS)
        check_normalization(mean, std)
    except KeyError as error:
        raise UserError(f"{path}: records a normalisation without {error}") from None
    except (ValueError, TypeError, OverflowError, RecursionError) as error:
        raise UserError(f"{path}: records a normalisation that is none ({brief(error)})") from None
    return (mean, std) if mean else None


def normalization_beside(path: Path, tensors: Mapping[str, Tensor]) -> Normalization | None:
    """Return the normalisation in a file's metadata, or else among the tensors that were read from it."""
    return metadata_normalization(path) or normalization_in(tensors)


def report_normalization(network: str, recorded: Normalization, source: str) -> None:
    """Log a network's normalisation that was taken from its run or file (`source`), if there is one."""
    if recorded[0]:
        numbers = format_normalization(recorded)
        log.info("%s normalises images by %s, as its %s records", network, numbers, source)


def _mismatches(expected: Mapping[str, Tensor], weights: Mapping[str, Tensor]) -> list[str]:
    shapes = [
        f"{name} must have shape {tuple(tensor.shape)}, got {tuple(weights[name].shape)}"
        for name, tensor in expected.items()
        if name in weights and weights[name].shape != tensor.shape
    ]
    missing = [f"{name} is missing" for name in expected if name not in weights]
    unexpected = [f"{name} is unexpected" for name in weights if name not in expected]
    return shapes + missing + unexpected


def _other_network(path: Path, read: Mapping[str, Tensor], expected: Mapping[str, Tensor]) -> str:
    """Return a note on the network that the file records, or else the shipped one that its weights fit."""
    if _fit_but_for_classes(read, expected):
        return ""
    if network := recorded_facts(path).network:
        return f"; the weights are for {one_line(network)}"
    for name in model_names():
        with torch.device("meta"):  # names and shapes alone
            candidate = build_model(name, classes=1).state_dict()
        if _fit_but_for_classes(read, candidate):
            return f"; the weights are for {name}"
    return ""


def _fitting_parts(read: Mapping[str, Tensor], expected: Mapping[str, Tensor], flag: str) -> str:
    """Return a note on the parts of a set, such as a distiller's student, that fit this network alone."""
    parts = dict.fromkeys(
        prefix for name in read for prefix in list(accumulate(name.split("."), _joined))[:-1]
    )
    fitting = [part for part in parts if _fit_but_for_classes(part_of(read, part), expected)]
    outer = [part for part in fitting if not any(part.startswith(f"{other}.") for other in fitting)]
    return f"; {' or '.join(f'{flag} {part}' for part in outer)} takes a part that fits" if outer else ""


def _joined(prefix: str, name: str) -> str:
    return f"{prefix}.{name}"


def _fit_but_for_classes(read: Mapping[str, Tensor], expected: Mapping[str, Tensor]) -> bool:
    return _shapes_but_classifier(renamed(read, expected)) == _shapes_but_classifier(expected)


def _shapes_but_classifier(weights: Mapping[str, Tensor]) -> dict[str, torch.Size]:
    """Return the shapes by name, without the classifier's, which has as many rows as there are classes."""
    return {name: tensor.shape for name, tensor in weights.items() if not name.startswith(CLASSIFIERS)}


def _other_classes(network: nn.Module, expected: Mapping[str, Tensor], weights: Mapping[str, Tensor]) -> str:
    """Return a note if the classifier has another number of rows, which are the classes; else nothing."""
    layers = dict(network.named_modules())
    classifiers = _classifiers(network)
    linear = [name for name in classifiers if isinstance(layers[name], nn.Linear)]
    name = f"{(linear or classifiers or [''])[-1]}.weight"
    if name not in weights or weights[name].dim() < 2 or len(weights[name]) == len(expected[name]):
        return ""
    return f"; the weights are for {len(weights[name])} classes, the data set has {len(expected[name])}"


def _classifiers(network: nn.Module) -> list[str]:
    """Return the names of the layers that may be the last: linear ones and 1x1 convolutions, in order."""
    return [
        name
        for name, layer in network.named_modules()
        if isinstance(layer, nn.Linear) or (isinstance(layer, nn.Conv2d) and layer.kernel_size == (1, 1))
    ]


def _head(
    path: Path,
    network: nn.Module,
    expected: Mapping[str, Tensor],
    weights: Mapping[str, Tensor],
    classes: int,
) -> list[str]:
    """Return the names of the classification layer's tensors; see `load_weights`."""
    names = [f"{name}.weight" for name in _classifiers(network)]
    fitting = [name for name in names if name in expected and len(expected[name]) == classes]
    other = [name for name in fitting if _differs_in_outputs(expected[name], weights.get(name))]
    if not fitting:
        raise UserError(f"{path}: no linear layer or 1x1 convolution of the network has {classes} outputs")
    layer = (other or fitting)[-1].removesuffix("weight")
    return [name for name in expected if name.startswith(layer) and name.count(".") == layer.count(".")]


def _differs_in_outputs(own: Tensor, other: Tensor | None) -> bool:
    return other is None or (other.shape[1:] == own.shape[1:] and len(other) != len(own))
