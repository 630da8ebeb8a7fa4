"""Checkpoints that a kill at any instant leaves whole: the former one, or the new one."""

import io
import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn

from fastpeer.errors import UserError, one_line
from fastpeer.models.weights import load_weights, save_weights


def save_checkpoint(
    folder: Path, name: str, number: int, networks: Mapping[str, nn.Module], state: Mapping[str, Any]
) -> None:
    """Write `folder/name` with a `.safetensors` file for each network and `state.pt`.

    `name` is a link to a folder that holds the checkpoint; swapping the link is the one instant at
    which the new checkpoint replaces the former.

    Args:
        folder: the run's `checkpoints`.
        name: last, best or best-swa.
        number: tells successive checkpoints of a name apart, such as the step.
        networks: what to save, by file name.
        state: numbers, texts, tensors, and lists and dicts of them.

    Raises:
        UserError: it cannot be written, because the disk is full for instance.
    """
    store = folder / ".store"
    fresh = store / f"{name}-{number:09d}"
    while fresh.exists():
        number += 1
        fresh = store / f"{name}-{number:09d}"
    try:
        _write(fresh, networks, state)
        _swap_link(folder / name, Path(".store") / fresh.name)
    except (OSError, RuntimeError, UserError) as error:
        shutil.rmtree(fresh, ignore_errors=True)
        kept = "; the former one is kept" if (folder / name).exists() else ""
        raise UserError(
            f"the checkpoint {folder / name} cannot be written ({one_line(error)}){kept}"
        ) from None
    _drop_former(store, name, fresh)


def load_state(folder: Path) -> dict[str, Any]:
    """Read a checkpoint's `state.pt`, without running any code it may hold.

    Raises:
        UserError: there is none, or it cannot be read.
    """
    path = folder / "state.pt"
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError:
        raise UserError(f"no checkpoint to go on from: {path} is missing; --force begins anew") from None
    except Exception:  # PyTorch's unpickler raises whatever a foreign byte leads to.
        state = None
    if not isinstance(state, dict):
        raise UserError(f"{path}: damaged or not a checkpoint")
    return state


def load_networks(folder: Path, networks: Mapping[str, nn.Module]) -> None:
    """Fill networks with the weights of a checkpoint's files of the same names."""
    for name, network in networks.items():
        load_weights(network, folder / f"{name}.safetensors")


def _write(folder: Path, networks: Mapping[str, nn.Module], state: Mapping[str, Any]) -> None:
    folder.mkdir(parents=True)
    for name, network in networks.items():
        save_weights(network, folder / f"{name}.safetensors")
    # By way of memory: torch reports a full disk as a failed assertion of its own.
    buffer = io.BytesIO()
    torch.save(dict(state), buffer)
    (folder / "state.pt").write_bytes(buffer.getvalue())
    for path in (*folder.iterdir(), folder):
        _flush(path)


def _swap_link(link: Path, target: Path) -> None:
    beside = link.with_name(f".{link.name}.new")
    beside.unlink(missing_ok=True)
    beside.symlink_to(target)
    os.replace(beside, link)
    _flush(link.parent)


def _drop_former(store: Path, name: str, fresh: Path) -> None:
    for former in store.glob(f"{name}-[0-9]*"):
        if former != fresh:
            shutil.rmtree(former, ignore_errors=True)


def _flush(path: Path) -> None:
    """Make sure a file, or a folder's list of names, has reached the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
