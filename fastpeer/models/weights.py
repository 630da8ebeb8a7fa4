"""Writes and reads a network's weights: safetensors, and PyTorch checkpoints without running their code."""

import argparse
import json
import pickle
import warnings
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.serialization import safe_globals

from fastpeer.errors import UserError, one_line
from fastpeer.models import build_model, model_names
from fastpeer.models.names import class_path
from fastpeer.models.normalized import normalization, without_normalization
from fastpeer.models.weight_names import (
    CLASSIFIERS,
    Normalization,
    normalization_in,
    normalization_names,
    renamed,
)

CHECKPOINT_SUFFIXES = (".pth.tar", ".pth", ".pt")
STATE_DICT_KEYS = ("state_dict", "model_state_dict", "model", "net")
METADATA_KEYS = ("fastpeer.mean", "fastpeer.std")
"""Keys of the normalisation in a safetensors file's metadata, as JSON lists."""
SAFE_DTYPES = (np.bool_, np.int32, np.int64, np.float16, np.float32, np.float64)


def save_weights(network: nn.Module, path: str | Path) -> None:
    """Write a network's parameters and buffers as safetensors, in their dtype and in NCHW order.

    The network may be on any device. Its normalisation goes into the file's metadata, not among the weights.

    Raises:
        UserError: the file cannot be written.
    """
    tensors = _without_shared_memory(without_normalization(network).state_dict())
    mean_std = normalization(network)
    numbers = {} if mean_std is None else dict(zip(METADATA_KEYS, map(json.dumps, mean_std), strict=True))
    try:
        save_file(tensors, path, metadata={"format": "pt", **numbers})
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


def load_weights(network: nn.Module, path: str | Path) -> None:
    """Copy the weights in a file into a network, which keeps its dtype, memory format and device.

    Reads safetensors, and PyTorch checkpoints such as the released ones: a state dict, alone or under
    `state_dict`, `model_state_dict`, `model` or `net`. See `renamed` for how far the names may differ.

    Raises:
        UserError: the file cannot be read, does not fit the network, or records a normalisation where this
            network has none. The network is then unchanged.
    """
    path = Path(path)
    inner = without_normalization(network)
    expected = inner.state_dict()
    read = _read(path)
    weights = renamed(read, expected)
    mismatches = _mismatches(expected, weights)
    if mismatches:
        first = one_line("; ".join(mismatches[:2]))
        notes = _other_classes(inner, expected, weights) + _other_network(read, expected)
        raise UserError(f"{path}: weights do not fit: {len(mismatches)} ({first}){notes}")
    if normalization(network) is None:
        _refuse_ignored_normalization(path, read, expected)
    inner.load_state_dict(weights)


def recorded_normalization(path: str | Path, network: str) -> Normalization | None:
    """Return the mean and std of the normalisation that a weight file records; None if it records none.

    Each has one number, or one for each channel. They are in the metadata of files written by `save_weights`,
    and among the weights in many released files: `mu` and `sigma`, or `mean` and `std`, with any prefix.

    Args:
        path: the weight file.
        network: name of the network it is for. For the user's own classes, tensors among the weights are not
            looked at: the class loads them itself.

    Raises:
        UserError: the file cannot be read.
    """
    path = Path(path)
    if class_path(network):
        return _metadata_normalization(path)
    return _metadata_normalization(path) or normalization_in(_read(path))


def _refuse_ignored_normalization(
    path: Path, read: Mapping[str, Tensor], expected: Mapping[str, Tensor]
) -> None:
    """Refuse weights trained with a normalisation that this network would not apply: accuracy would drop."""
    ignored = [name for name in normalization_names(read) if name.removeprefix("module.") not in expected]
    recorded = _metadata_normalization(path) or normalization_in(read)
    if ignored or _metadata_normalization(path):
        numbers = f"mean {_format(recorded[0])} and std {_format(recorded[1])}" if recorded else ignored[0]
        raise UserError(
            f"{path}: its network normalises images itself ({numbers}), this one does not: set mean and std,"
            " for instance with --model.mean and --model.std"
        )


def _format(numbers: Sequence[float]) -> str:
    return " ".join(f"{number:g}" for number in numbers)


def _metadata_normalization(path: Path) -> Normalization | None:
    """Return the normalisation that `save_weights` wrote; other programs' metadata may hold anything."""
    if path.suffix != ".safetensors" or not path.is_file():
        return None
    try:
        with safe_open(path, "pt") as file:
            metadata = file.metadata() or {}
        mean, std = (tuple(float(number) for number in json.loads(metadata[name])) for name in METADATA_KEYS)
    except (OSError, SafetensorError, ValueError, KeyError, TypeError):
        return None
    return (mean, std)


def _read(path: Path) -> Mapping[str, Tensor]:
    try:
        path.open("rb").close()
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror})") from None
    if path.suffix == ".safetensors":
        return _read_safetensors(path)
    if path.name.endswith(CHECKPOINT_SUFFIXES):
        return _state_dict(path, _read_checkpoint(path))
    raise UserError(f"{path}: must end in .safetensors, {', '.join(CHECKPOINT_SUFFIXES)}")


def _read_safetensors(path: Path) -> Mapping[str, Tensor]:
    try:
        return load_file(path)
    except (OSError, SafetensorError) as error:
        raise UserError(f"{path}: damaged or not safetensors ({one_line(error)})") from None


def _read_checkpoint(path: Path) -> object:
    try:
        with safe_globals(_safe_types()), warnings.catch_warnings():
            # torch warns about old formats; a refused file must give one line.
            warnings.simplefilter("ignore")
            return torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # PyTorch's unpickler may raise anything for a foreign file.
        refused = isinstance(error, pickle.UnpicklingError) and "GLOBAL" in str(error)
        reason = "holds Python objects that could run code" if refused else "damaged or not a checkpoint"
        raise UserError(f"{path}: {reason}; not loaded") from None


def _safe_types() -> list[Callable[..., object] | tuple[Callable[..., object], str]]:
    """Return types without code that released checkpoints keep with the weights: arguments, NumPy scalars."""
    # How NumPy pickles a scalar: this function, found through any of its values.
    scalar = np.float64().__reduce__()[0]
    modules = ("numpy.core.multiarray", "numpy._core.multiarray")  # before and since NumPy 2
    scalars = [(scalar, f"{module}.scalar") for module in modules]
    return [argparse.Namespace, np.dtype, *(type(np.dtype(kind)) for kind in SAFE_DTYPES), *scalars]


def _state_dict(path: Path, content: object) -> Mapping[str, Tensor]:
    """Return a checkpoint's state dict, which may be nested under several of `STATE_DICT_KEYS`."""
    while isinstance(content, Mapping):
        wrapped = (content.get(key) for key in STATE_DICT_KEYS)
        inner = next((value for value in wrapped if isinstance(value, Mapping)), None)
        if inner is None:
            break
        content = inner
    if not isinstance(content, Mapping) or not all(map(_is_weight, content.items())):
        raise UserError(f"{path}: holds no state dict, neither alone nor under {', '.join(STATE_DICT_KEYS)}")
    return content


def _is_weight(item: tuple[object, object]) -> bool:
    return isinstance(item[0], str) and isinstance(item[1], Tensor)


def _mismatches(expected: Mapping[str, Tensor], weights: Mapping[str, Tensor]) -> list[str]:
    shapes = [
        f"{name} must have shape {tuple(tensor.shape)}, got {tuple(weights[name].shape)}"
        for name, tensor in expected.items()
        if name in weights and weights[name].shape != tensor.shape
    ]
    missing = [f"{name} is missing" for name in expected if name not in weights]
    unexpected = [f"{name} is unexpected" for name in weights if name not in expected]
    return shapes + missing + unexpected


def _other_network(read: Mapping[str, Tensor], expected: Mapping[str, Tensor]) -> str:
    """Return a note that names the shipped network which a file's weights fit, if it is another one."""
    for name in model_names():
        with torch.device("meta"):  # names and shapes alone
            candidate = build_model(name, classes=1).state_dict()
        body = _shapes_but_classifier(candidate)
        fits = body == _shapes_but_classifier(renamed(read, candidate))
        if fits and body != _shapes_but_classifier(expected):
            return f"; the weights are those of {name}"
    return ""


def _shapes_but_classifier(weights: Mapping[str, Tensor]) -> dict[str, torch.Size]:
    """Return the shapes by name, without the classifier's, which has as many rows as there are classes."""
    return {name: tensor.shape for name, tensor in weights.items() if not name.startswith(CLASSIFIERS)}


def _other_classes(network: nn.Module, expected: Mapping[str, Tensor], weights: Mapping[str, Tensor]) -> str:
    """Return a note if the classifier has another number of rows, which are the classes; else nothing."""
    linear = [f"{name}.weight" for name, module in network.named_modules() if isinstance(module, nn.Linear)]
    name = linear[-1] if linear else ""
    if name not in weights or weights[name].dim() != 2 or len(weights[name]) == len(expected[name]):
        return ""
    return f"; the weights are for {len(weights[name])} classes, the data set has {len(expected[name])}"
