"""Checkpoints, written so that a kill at any time leaves either the previous or the new one complete."""

import io
import shutil
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

import torch
from torch import nn

from fastpeer.errors import UserError, one_line
from fastpeer.links import checkpoint_folder, flush, link_checkpoint
from fastpeer.models.weights import WeightFacts, load_weights, save_weights


def save_checkpoint(
    folder: Path,
    name: str,
    number: int,
    networks: Mapping[str, nn.Module],
    state: Mapping[str, Any],
    facts: Mapping[str, WeightFacts] = MappingProxyType({}),
) -> None:
    """Write the checkpoint `folder/name`: a `.safetensors` file for each network, and `state.pt`.

    `name` is a symbolic link to a folder with the files, or a text file where links cannot be made (see
    `fastpeer.links`). The files are complete and on disk before the link is replaced, which is atomic.

    Args:
        folder: the run's `checkpoints`.
        name: last, best or best-swa.
        number: distinguishes successive checkpoints of a name, such as the step.
        networks: networks to save, by file name.
        state: numbers, strings, tensors, and lists and dicts of them.
        facts: what the files tell about their networks, by file name.

    Raises:
        UserError: it cannot be written, for instance because the disk is full.
    """
    store = folder / ".store"
    new = store / f"{name}-{number:09d}"
    # A run that was killed while it wrote, or resumed at the same step, has left a folder of that number.
    while new.exists():
        number += 1
        new = store / f"{name}-{number:09d}"
    try:
        _write(new, networks, state, facts)
        link_checkpoint(folder / name, new)
    except (OSError, RuntimeError, UserError) as error:
        shutil.rmtree(new, ignore_errors=True)
        kept = "; the previous one is kept" if checkpoint_folder(folder / name).exists() else ""
        raise UserError(
            f"the checkpoint {folder / name} cannot be written ({one_line(error)}){kept}"
        ) from None
    _remove_others(store, name, new)


def load_state(folder: Path) -> dict[str, Any]:
    """Read a checkpoint's `state.pt`, tensors on the CPU, without running any code it may contain.

    Raises:
        UserError: the file is missing or cannot be read.
    """
    path = folder / "state.pt"
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError:
        raise UserError(f"no checkpoint to resume from: {path} is missing; --force starts again") from None
    except Exception:  # PyTorch's unpickler raises whatever a foreign byte leads to.
        state = None
    if not isinstance(state, dict):
        raise UserError(f"{path}: damaged or not a checkpoint")
    return state


def load_networks(folder: Path, networks: Mapping[str, nn.Module]) -> None:
    """Load each network's weights from the checkpoint's file of the same name.

    Raises:
        UserError: a file cannot be read or does not fit its network.
    """
    for name, network in networks.items():
        load_weights(network, folder / f"{name}.safetensors")


def _write(
    folder: Path,
    networks: Mapping[str, nn.Module],
    state: Mapping[str, Any],
    facts: Mapping[str, WeightFacts],
) -> None:
    folder.mkdir(parents=True)
    for name, network in networks.items():
        save_weights(network, folder / f"{name}.safetensors", facts.get(name))
    # Through memory: torch.save reports a full disk as a failed internal assertion, not as an OSError.
    buffer = io.BytesIO()
    torch.save(dict(state), buffer)
    (folder / "state.pt").write_bytes(buffer.getvalue())
    # Before the link is replaced: after a power failure it must not point to incomplete files.
    for path in (*folder.iterdir(), folder):
        flush(path)


def _remove_others(store: Path, name: str, kept: Path) -> None:
    # The digit keeps "best" from matching the folders of "best-swa".
    for folder in store.glob(f"{name}-[0-9]*"):
        if folder != kept:
            shutil.rmtree(folder, ignore_errors=True)
