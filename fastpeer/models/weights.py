"""A network's weights, to and from files."""

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
from fastpeer.models.names import class_path
from fastpeer.models.normalized import normalization, within
from fastpeer.models.weight_names import record_names, recorded, renamed

CHECKPOINT_SUFFIXES = (".pth.tar", ".pth", ".pt")
STATE_DICT_KEYS = ("state_dict", "model_state_dict", "model", "net")
RECORD = ("fastpeer.mean", "fastpeer.std")
"""Names in a safetensors file's metadata."""
SAFE_DTYPES = (np.bool_, np.int32, np.int64, np.float16, np.float32, np.float64)


def save_weights(network: nn.Module, path: str | Path) -> None:
    """Write parameters and buffers as safetensors: same dtype, logical (NCHW) order, on any device.

    A network's normalisation goes into the file's metadata, not among the weights.

    Raises:
        UserError: the file cannot be written.
    """
    tensors = _apart(within(network).state_dict())
    record = normalization(network)
    numbers = {} if record is None else dict(zip(RECORD, map(json.dumps, record), strict=True))
    try:
        save_file(tensors, path, metadata={"format": "pt", **numbers})
    except (OSError, SafetensorError) as error:
        raise UserError(f"{path}: cannot be written ({one_line(error)})") from None


def _apart(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Copy what shares its memory with others, as tied weights do, which safetensors does not write."""
    apart: dict[str, Tensor] = {}
    seen: set[int] = set()
    for name, tensor in weights.items():
        whole = tensor.contiguous()
        address = whole.untyped_storage().data_ptr()
        apart[name] = whole.clone() if address in seen else whole
        seen.add(address)
    return apart


def load_weights(network: nn.Module, path: str | Path) -> None:
    """Copy the weights of a file into a network, which keeps its dtype, memory format and device.

    Reads safetensors, and PyTorch checkpoints such as the released ones: a state dict, alone or under
    `state_dict`, `model_state_dict`, `model` or `net`. See `renamed` for how far its names may differ.

    Raises:
        UserError: the file cannot be read, does not fit the network, or says that its own normalises its
            images where this one does not; the network is then as it was.
    """
    path = Path(path)
    expected = within(network).state_dict()
    read = _read(path)
    weights = renamed(read, expected)
    misfits = _misfits(expected, weights)
    if misfits:
        first = one_line("; ".join(misfits[:2]))
        rows = _classes_differ(within(network), expected, weights)
        raise UserError(f"{path}: weights that do not fit: {len(misfits)} ({first}){rows}")
    if normalization(network) is None:
        _refuse_unheeded_record(path, read, expected)
    within(network).load_state_dict(weights)


def recorded_normalization(
    path: str | Path, network: str
) -> tuple[tuple[float, ...], tuple[float, ...]] | None:
    """Return the mean and std that a file says its network normalises images by, None if it says nothing.

    Each has one number, or one for each channel. They stand in the metadata of files that `save_weights`
    wrote, and beside the weights in many released ones: `mu` and `sigma`, or `mean` and `std`, at any level.

    Args:
        path: of the file.
        network: name of the network it is for: a class of the user's own takes the numbers beside the
            weights itself.

    Raises:
        UserError: the file cannot be read.
    """
    path = Path(path)
    if class_path(network):
        return _metadata_record(path)
    return _metadata_record(path) or recorded(_read(path))


def _refuse_unheeded_record(path: Path, read: Mapping[str, Tensor], expected: Mapping[str, Tensor]) -> None:
    unheeded = [name for name in record_names(read) if name.removeprefix("module.") not in expected]
    record = _metadata_record(path) or recorded(read)
    if unheeded or _metadata_record(path):
        numbers = f"mean {_words(record[0])} and std {_words(record[1])}" if record else unheeded[0]
        raise UserError(
            f"{path}: its network normalises images within itself ({numbers}), this one does not: say so with"
            " the settings mean and std, such as --model.mean and --model.std"
        )


def _words(numbers: Sequence[float]) -> str:
    return " ".join(f"{number:g}" for number in numbers)


def _metadata_record(path: Path) -> tuple[tuple[float, ...], tuple[float, ...]] | None:
    """Return what `save_weights` wrote beside the weights; strangers' metadata may be anything."""
    if path.suffix != ".safetensors" or not path.is_file():
        return None
    try:
        with safe_open(path, "pt") as file:
            metadata = file.metadata() or {}
        mean, std = (tuple(float(number) for number in json.loads(metadata[name])) for name in RECORD)
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
    raise UserError(f"{path}: weights end in .safetensors, {', '.join(CHECKPOINT_SUFFIXES)}")


def _read_safetensors(path: Path) -> Mapping[str, Tensor]:
    try:
        return load_file(path)
    except (OSError, SafetensorError) as error:
        raise UserError(f"{path}: damaged or not safetensors ({one_line(error)})") from None


def _read_checkpoint(path: Path) -> object:
    try:
        with safe_globals(_harmless_types()), warnings.catch_warnings():
            # A file that is refused is refused in one line.
            warnings.simplefilter("ignore")
            return torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # PyTorch's unpickler raises whatever a foreign byte leads to
        refused = isinstance(error, pickle.UnpicklingError) and "GLOBAL" in str(error)
        reason = "holds Python objects that could run code" if refused else "damaged or not a checkpoint"
        raise UserError(f"{path}: {reason}; not loaded") from None


def _harmless_types() -> list[Callable[..., object] | tuple[Callable[..., object], str]]:
    """Plain values that released checkpoints keep beside the weights: arguments and NumPy scalars."""
    scalar = np.float64().__reduce__()[0]
    modules = ("numpy.core.multiarray", "numpy._core.multiarray")  # before and since NumPy 2
    scalars = [(scalar, f"{module}.scalar") for module in modules]
    return [argparse.Namespace, np.dtype, *(type(np.dtype(kind)) for kind in SAFE_DTYPES), *scalars]


def _state_dict(path: Path, content: object) -> Mapping[str, Tensor]:
    """Find the state dict in what a checkpoint holds, which may lie under several of the usual names."""
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


def _misfits(expected: Mapping[str, Tensor], weights: Mapping[str, Tensor]) -> list[str]:
    shapes = [
        f"{name} has shape {tuple(weights[name].shape)}, not {tuple(tensor.shape)}"
        for name, tensor in expected.items()
        if name in weights and weights[name].shape != tensor.shape
    ]
    missing = [f"{name} is missing" for name in expected if name not in weights]
    unexpected = [f"{name} is unexpected" for name in weights if name not in expected]
    return shapes + missing + unexpected


def _classes_differ(network: nn.Module, expected: Mapping[str, Tensor], weights: Mapping[str, Tensor]) -> str:
    """Say so where the classifier's rows, one a class, are not as many as expected."""
    linear = [f"{name}.weight" for name, module in network.named_modules() if isinstance(module, nn.Linear)]
    name = linear[-1] if linear else ""
    if name not in weights or weights[name].dim() != 2 or len(weights[name]) == len(expected[name]):
        return ""
    return f"; it has {len(weights[name])} classes, this data set {len(expected[name])}"
