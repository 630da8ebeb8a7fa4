"""A network's weights, to and from files."""

import argparse
import pickle
import warnings
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.serialization import safe_globals

from fastpeer.errors import UserError, one_line

CHECKPOINT_SUFFIXES = (".pth.tar", ".pth", ".pt")
STATE_DICT_KEYS = ("state_dict", "model", "net")
SAFE_DTYPES = (np.bool_, np.int32, np.int64, np.float16, np.float32, np.float64)


def save_weights(network: nn.Module, path: str | Path) -> None:
    """Write parameters and buffers as safetensors: same dtype, logical (NCHW) order, on any device.

    Raises:
        UserError: the file cannot be written.
    """
    tensors = {name: tensor.contiguous() for name, tensor in network.state_dict().items()}
    try:
        save_file(tensors, path, metadata={"format": "pt"})
    except (OSError, SafetensorError) as error:
        raise UserError(f"{path}: cannot be written ({one_line(error)})") from None


def load_weights(network: nn.Module, path: str | Path) -> None:
    """Copy the weights of a file into a network, which keeps its dtype, memory format and device.

    Reads safetensors, and PyTorch checkpoints such as the released ones: a state dict, alone or under
    `state_dict`, `model` or `net`. The names may start with `module.`, as `DataParallel` writes them.

    Raises:
        UserError: the file cannot be read, or does not fit the network, which is then as it was.
    """
    weights = {name.removeprefix("module."): tensor for name, tensor in _read(Path(path)).items()}
    expected = network.state_dict()
    misfits = _misfits(expected, weights)
    if misfits:
        first = one_line("; ".join(misfits[:2]))
        rows = _classes_differ(network, expected, weights)
        raise UserError(f"{path}: weights that do not fit: {len(misfits)} ({first}){rows}")
    network.load_state_dict(weights)


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
    if isinstance(content, Mapping):
        wrapped = (content.get(key) for key in STATE_DICT_KEYS)
        content = next((value for value in wrapped if isinstance(value, Mapping)), content)
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
