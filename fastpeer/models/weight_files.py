"""What lies in a file with weights: safetensors, and PyTorch checkpoints without running their code.

A file is read by its content, whatever its suffix.
"""

import argparse
import pickle
import warnings
import zipfile
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor
from torch.serialization import safe_globals

from fastpeer.errors import UserError, one_line
from fastpeer.models.weight_checks import refuse_bomb, refuse_other_tensors
from fastpeer.models.weight_facts import is_safetensors, start_of

SUFFIXES = (".safetensors", ".pth.tar", ".pth", ".pt", ".ckpt", ".bin")
"""What such files are usually called; for messages."""
PLAIN_KEYS = ("state_dict", "model_state_dict", "model", "net")
AVERAGED_KEYS = ("state_dict_ema", "model_ema", "ema")
"""Keys of averaged weights, which are taken where there are no others."""
SAFE_DTYPES = (np.bool_, np.int32, np.int64, np.float16, np.float32, np.float64)
MAX_DEPTH = 16
"""Of dictionaries in dictionaries; one may even contain itself."""
MAX_DICTIONARIES = 10_000
"""In a file: those that are reached in many ways count as many."""
AVERAGED_MODEL_COUNTER = "n_averaged"
"""How many models torch.optim.swa_utils.AveragedModel has averaged: in its state dict, but no weight."""


@dataclass(frozen=True)
class WeightSet:
    """The weights that were taken from a file.

    Attributes:
        tensors: by name.
        key: where they lie in the file, such as state_dict or state_dict.net; empty: the file is the set.
        others: where further sets lie.
    """

    tensors: Mapping[str, Tensor]
    key: str = ""
    others: tuple[str, ...] = ()


def read_weights(path: Path, key: str = "", flag: str = "--weights-key") -> WeightSet:
    """Read a set of weights from a file, onto the CPU.

    Args:
        path: the file.
        key: which set, as `WeightSet.key` names it, or what the names of a part of one begin with; empty: the
            set under the first of `PLAIN_KEYS`, else of `AVERAGED_KEYS`, that the file has.
        flag: the flag that names the key, for messages.

    Raises:
        UserError: the file cannot be read, has no such set, or holds tensors in it that are no weights.
    """
    start = start_of(path)
    if is_safetensors(start):
        content: object = _read_safetensors(path)
    else:
        _refuse_what_is_none(path, start)
        refuse_bomb(path)
        content = _read_checkpoint(path)
    found = _chosen_set(path, content, key, flag)
    refuse_other_tensors(path, found.tensors)
    return found


def _refuse_what_is_none(path: Path, start: bytes) -> None:
    """Refuse a file that is no PyTorch checkpoint, by the name of what it is."""
    if start.startswith(b"version https://git-lfs"):
        raise UserError(
            f"{path}: a Git LFS pointer, not the weights: fetch them with git lfs pull where it was cloned"
        )
    if start.lstrip().lower().startswith((b"<!doctype", b"<html", b"<?xml")):
        raise UserError(f"{path}: a web page, not weights: download the file that the page shows")
    # Zip archives, and pickles of protocol 2 and later.
    if not start.startswith((b"PK\x03\x04", b"\x80")):
        raise UserError(
            f"{path}: damaged or not weights: must be safetensors or a PyTorch checkpoint, such as"
            f" {', '.join(SUFFIXES)}"
        )


def _read_safetensors(path: Path) -> Mapping[str, Tensor]:
    try:
        return load_file(path)
    except (OSError, SafetensorError, KeyError, ValueError, RuntimeError) as error:
        raise UserError(f"{path}: damaged or not safetensors ({one_line(error)})") from None


def _read_checkpoint(path: Path) -> object:
    try:
        # As a file, not by its path: torch.load would go by the suffix.
        with path.open("rb") as file, safe_globals(_safe_types()), warnings.catch_warnings():
            # torch warns about old formats; a refused file must give one line.
            warnings.simplefilter("ignore")
            return torch.load(file, map_location="cpu", weights_only=True)
    except Exception as error:  # PyTorch's unpickler may raise anything for a foreign file.
        reason = _refusal(path, error)
        raise UserError(f"{path}: {reason}; not loaded") from None


def _refusal(path: Path, error: Exception) -> str:
    names = _names_in_archive(path)
    if {"config.toml", "run.json"} <= {Path(name).name for name in names}:
        return "a zipped run folder: unpack it, and name the folder"
    if any(name.endswith("/constants.pkl") for name in names):
        return "a TorchScript program: save its state_dict() with torch.save"
    if isinstance(error, pickle.UnpicklingError) and "GLOBAL" in str(error):
        return "holds Python objects that could run code: save the state_dict() alone"
    return "damaged or not a checkpoint"


def _names_in_archive(path: Path) -> list[str]:
    try:
        with zipfile.ZipFile(path) as archive:
            return archive.namelist()
    except Exception:  # Of a damaged archive, zipfile raises nearly anything.
        return []


def _safe_types() -> list[Callable[..., object] | tuple[Callable[..., object], str]]:
    """Return types without code that released checkpoints keep with the weights: arguments, NumPy scalars."""
    # How NumPy pickles a scalar: this function, found through any of its values.
    scalar = np.float64().__reduce__()[0]
    modules = ("numpy.core.multiarray", "numpy._core.multiarray")  # before and since NumPy 2
    scalars = [(scalar, f"{module}.scalar") for module in modules]
    return [argparse.Namespace, np.dtype, *(type(np.dtype(kind)) for kind in SAFE_DTYPES), *scalars]


def _chosen_set(path: Path, content: object, key: str, flag: str) -> WeightSet:
    _refuse_endless(path, content)
    sets = dict(_sets(content))
    if not sets:
        raise UserError(f"{path}: holds no state dict, neither alone nor under {', '.join(PLAIN_KEYS)}")
    taken = key or ("" if "" in sets else _known_key(content, sets))
    if key not in sets and (part := _part_of_a_set(sets, key)):
        return WeightSet(part, key)
    if key and "" in sets:
        raise UserError(f"{path}: holds one set of weights only: leave out {flag} {key}")
    if taken not in sets:
        where = f"under {key}" if key else "under a known key"
        raise UserError(f"{path}: holds no weights {where}: name one of {', '.join(sets)} with {flag}")
    return WeightSet(_without_counter(sets[taken]), taken, tuple(name for name in sets if name != taken))


def _refuse_endless(path: Path, content: object) -> None:
    """Refuse dictionaries that contain themselves, or each other so often that no end is in sight."""
    level, count = [content], 0
    for _ in range(MAX_DEPTH):
        level = [one for value in level if isinstance(value, Mapping) for one in value.values()]
        level = [value for value in level if isinstance(value, Mapping)]
        count += len(level)
        if not level:
            return
        if count > MAX_DICTIONARIES:
            break
    raise UserError(f"{path}: its dictionaries contain each other endlessly; not loaded")


def _part_of_a_set(sets: Mapping[str, Mapping[str, Tensor]], key: str) -> Mapping[str, Tensor]:
    """Return the tensors below a key within a set, where a distiller keeps its student; empty: none are."""
    parts = (part_of(tensors, key.removeprefix(f"{name}." if name else "")) for name, tensors in sets.items())
    return next((part for part in parts if part), {})


def part_of(tensors: Mapping[str, Tensor], prefix: str) -> Mapping[str, Tensor]:
    """Return the tensors whose names begin with a prefix and a dot, by the rest of their names."""
    start = f"{prefix}."
    return {name.removeprefix(start): tensor for name, tensor in tensors.items() if name.startswith(start)}


def _sets(content: object, prefix: str = "") -> Iterator[tuple[str, Mapping[str, Tensor]]]:
    """Yield every state dict in a checkpoint, with the keys that lead to it, joined by dots."""
    if not isinstance(content, Mapping):
        return
    if all(map(_is_weight, content.items())):
        # Within a file, no collection of numbers, such as accuracies by file, nor an empty one.
        if not prefix or any(tensor.dim() for tensor in content.values()):
            yield prefix, content
        return
    for key, value in content.items():
        # Not below numbers: an optimizer's state holds tensors by parameter.
        if isinstance(key, str) and key:
            yield from _sets(value, f"{prefix}.{key}" if prefix else key)


def _known_key(content: object, sets: Mapping[str, object]) -> str | None:
    """Return the key of the set that is taken unless another is named; None: no key is known."""
    taken = ""
    while taken not in sets and isinstance(content, Mapping):
        found = ((key, f"{taken}.{key}" if taken else key) for key in (*PLAIN_KEYS, *AVERAGED_KEYS))
        key, taken = next(((key, path) for key, path in found if _leads_to_a_set(path, sets)), ("", ""))
        if not taken:
            return None
        content = content[key]
    return taken


def _leads_to_a_set(key: str, sets: Mapping[str, object]) -> bool:
    return any(name == key or name.startswith(f"{key}.") for name in sets)


def _without_counter(tensors: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
    if AVERAGED_MODEL_COUNTER not in tensors or not all(
        name.startswith("module.") for name in tensors if name != AVERAGED_MODEL_COUNTER
    ):
        return tensors
    return {name: tensor for name, tensor in tensors.items() if name != AVERAGED_MODEL_COUNTER}


def _is_weight(item: tuple[object, object]) -> bool:
    return isinstance(item[0], str) and isinstance(item[1], Tensor)
