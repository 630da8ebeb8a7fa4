"""Checkpoints, written so that a kill at any time leaves either the previous or the new one complete."""

import io
import re
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

import torch
from torch import nn

from fastpeer.config import Config
from fastpeer.config.recipes import parse_recipe
from fastpeer.errors import UserError, one_line
from fastpeer.files import flush, read_text
from fastpeer.links import checkpoint_folder, link_checkpoint
from fastpeer.manifest import check_files, write_manifest
from fastpeer.models.weight_facts import WeightFacts
from fastpeer.models.weights import load_weights, save_weights

FORMAT = 2
"""Of a state; 1 had no manifest beside it."""
SETTINGS = "settings.toml"
"""The run's settings when the checkpoint was written, beside its weights and state."""


def save_checkpoint(
    folder: Path,
    name: str,
    number: int,
    networks: Mapping[str, nn.Module],
    state: Mapping[str, Any],
    facts: Mapping[str, WeightFacts] = MappingProxyType({}),
    settings: str = "",
    keep_previous: bool = False,
) -> None:
    """Write the checkpoint `folder/name`: a `.safetensors` file for each network, `state.pt`, and a manifest.

    `name` is a symbolic link to a folder with the files, or a text file where links cannot be made (see
    `fastpeer.links`). The files are complete and on disk before the link is replaced, which is atomic.

    Args:
        folder: the run's `checkpoints`.
        name: last, best or best-swa.
        number: distinguishes successive checkpoints of a name, such as the step.
        networks: networks to save, by file name.
        state: numbers, strings, tensors, and lists and dicts of them.
        facts: what the files tell about their networks, by file name.
        settings: the run's settings as TOML; empty: they are not saved.
        keep_previous: whether the checkpoint that `name` stood for stays in the store.

    Raises:
        UserError: it cannot be written, for instance because the disk is full.
    """
    former = checkpoint_folder(folder / name).resolve()
    new = _free_folder(folder / ".store", name, number)
    # Whatever bears a checkpoint's name is complete: until it is, it bears another.
    part = new.with_name(f".{new.name}")
    try:
        shutil.rmtree(part, ignore_errors=True)
        _write(part, networks, {"format": FORMAT, **state}, facts, settings)
        part.rename(new)
        flush(new.parent)
        link_checkpoint(folder / name, new)
    except (OSError, RuntimeError, UserError) as error:
        _remove_unlinked(folder / name, part, new)
        kept = "; the previous one is kept" if checkpoint_folder(folder / name).exists() else ""
        raise UserError(
            f"the checkpoint {folder / name} cannot be written ({one_line(error)}){kept}"
        ) from None
    _remove_others(folder, name, {former} if keep_previous else set())


def keep_checkpoint(folder: Path, name: str, kept: str) -> None:
    """Let `folder/kept` stand for what `folder/name` stands for now, and go on doing so.

    Raises:
        UserError: it cannot be written.
    """
    try:
        link_checkpoint(folder.resolve() / kept, checkpoint_folder(folder / name).resolve())
    except OSError as error:
        raise UserError(f"the checkpoint {folder / kept} cannot be written ({one_line(error)})") from None


def put_back(folder: Path, name: str, good: Path) -> None:
    """Let `folder/name` stand for another checkpoint of its store; what it stood for is put aside there.

    Raises:
        OSError: it cannot be written.
    """
    damaged = checkpoint_folder(folder / name).resolve()
    link_checkpoint(folder / name, good)
    if damaged.is_dir() and damaged.parent == good.parent.resolve():
        damaged.rename(_free_folder(good.parent, f"damaged-{name}", _number(damaged)))


def good_checkpoint(folder: Path, name: str) -> tuple[Path, str]:
    """Find the newest checkpoint of a name that is whole: what the name stands for, or else one of the store.

    Returns:
        Its folder; and what is wrong with the one that the name stands for, empty if nothing is.

    Raises:
        UserError: there is none; the damaged file is named.
    """
    current = checkpoint_folder(folder / name)
    damage = damage_of(current)
    if not damage:
        return current, ""
    for spare in _spares(folder, name):
        if spare.resolve() != current.resolve() and not damage_of(spare):
            return spare, damage
    raise UserError(
        f"{damage}; {folder.parent} holds no other checkpoint to go on from: restore the file from a copy,"
        " or begin a new run with another --out"
    )


def damage_of(folder: Path) -> str:
    """Return what is wrong with a checkpoint's files; empty if nothing is, or nothing that can be told."""
    try:
        if not check_files(folder) and load_state(folder).get("format", 1) > 1:
            return f"{folder / 'manifest.json'} is missing"
    except UserError as error:
        return str(error)
    return ""


def saved_settings(folder: Path) -> Config | None:
    """Return the settings that a checkpoint was trained with; None: it is damaged, or of an older fastpeer.

    Raises:
        UserError: they cannot be read, or this version of fastpeer does not know them.
    """
    path = folder / SETTINGS
    try:
        known = check_files(folder, [SETTINGS])
    except UserError:
        known = False
    if not known:
        return None
    try:
        text = read_text(path)
    except (OSError, ValueError) as error:
        raise UserError(f"{path}: cannot be read as text ({one_line(error)})") from None
    return parse_recipe(text, str(path))


def newest_settings(folder: Path, name: str) -> Config | None:
    """Return the settings of a name's newest checkpoint in which they are whole; None: there is none."""
    places = (checkpoint_folder(folder / name), *_spares(folder, name))
    return next((found for place in places if (found := saved_settings(place))), None)


def load_state(folder: Path) -> dict[str, Any]:
    """Read a checkpoint's `state.pt`, tensors on the CPU, without running any code it may contain.

    Raises:
        UserError: the file is missing or cannot be read.
    """
    path = folder / "state.pt"
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError:
        raise UserError(f"no checkpoint to resume from: {path} is missing") from None
    except Exception:  # PyTorch's unpickler raises whatever a foreign byte leads to.
        state = None
    if not isinstance(state, dict):
        raise UserError(f"{path}: damaged or not a checkpoint")
    number = state.get("format", 1)
    if type(number) is not int or number > FORMAT:
        raise UserError(
            f"{path}: its format must be {FORMAT} or less for this version of fastpeer, got {number}"
        )
    return state


def load_networks(folder: Path, networks: Mapping[str, nn.Module]) -> None:
    """Load each network's weights from the checkpoint's file of the same name.

    Raises:
        UserError: a file cannot be read or does not fit its network.
    """
    for name, network in networks.items():
        load_weights(network, folder / f"{name}.safetensors")


def _free_folder(store: Path, name: str, number: int) -> Path:
    # A run that was resumed at the same step has left a folder of that number.
    while (folder := store / f"{name}-{number:09d}").exists():
        number += 1
    return folder


def _number(folder: Path) -> int:
    found = re.search(r"-(\d+)\b", folder.name)
    return int(found[1]) if found else 0


def _spares(folder: Path, name: str) -> Iterator[Path]:
    """Yield the checkpoints of a name in the store, the newest first."""
    # The digit keeps "best" from matching the folders of "best-swa".
    yield from sorted((folder / ".store").glob(f"{name}-[0-9]*"), key=_number, reverse=True)


def _write(
    folder: Path,
    networks: Mapping[str, nn.Module],
    state: Mapping[str, Any],
    facts: Mapping[str, WeightFacts],
    settings: str,
) -> None:
    folder.mkdir(parents=True)
    for name, network in networks.items():
        save_weights(network, folder / f"{name}.safetensors", facts.get(name))
    # Through memory: torch.save reports a full disk as a failed internal assertion, not as an OSError.
    buffer = io.BytesIO()
    torch.save(dict(state), buffer)
    (folder / "state.pt").write_bytes(buffer.getvalue())
    if settings:
        (folder / SETTINGS).write_text(settings, "utf-8")
    write_manifest(folder)


def _remove_unlinked(link: Path, *folders: Path) -> None:
    linked = checkpoint_folder(link).resolve()
    for folder in folders:
        if folder.resolve() != linked:
            shutil.rmtree(folder, ignore_errors=True)


def _remove_others(folder: Path, name: str, kept: set[Path]) -> None:
    """Remove a name's checkpoints that nothing stands for, and what kills have left of some."""
    kept = kept | {checkpoint_folder(link).resolve() for link in folder.iterdir() if link.name != ".store"}
    unfinished = (folder / ".store").glob(f".{name}-[0-9]*")
    for found in (*_spares(folder, name), *unfinished):
        if found.resolve() not in kept:
            shutil.rmtree(found, ignore_errors=True)
