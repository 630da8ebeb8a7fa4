"""A checkpoint's manifest: size and SHA-256 of each of its files, written last and compared before use."""

import json
from collections.abc import Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from fastpeer.errors import UserError
from fastpeer.files import file_sha256, flush, read_text

MANIFEST = "manifest.json"
FORMAT = 1


def write_manifest(folder: Path) -> None:
    """Write `manifest.json`, which describes the other files of a checkpoint's folder as they are now.

    All are flushed to the disk.

    Raises:
        OSError: a file cannot be read or written.
    """
    paths = sorted(folder.iterdir())
    # Checksums are computed while the disk is waited for; neither holds Python's lock.
    with ThreadPoolExecutor(len(paths)) as pool:
        checksums = pool.map(file_sha256, paths)
        for path in paths:
            flush(path)
        sizes = [path.stat().st_size for path in paths]
        entries = [{"bytes": size, "sha256": sum} for size, sum in zip(sizes, checksums, strict=True)]
    files = dict(zip([path.name for path in paths], entries, strict=True))
    manifest = folder / MANIFEST
    manifest.write_text(json.dumps({"format": FORMAT, "files": files}, indent=1) + "\n", "utf-8")
    # After a power failure no link may point to incomplete files.
    flush(manifest)
    flush(folder)


def check_files(folder: Path, names: Iterable[str] = ()) -> bool:
    """Compare files of a checkpoint's folder with its manifest.

    Args:
        folder: the checkpoint's folder.
        names: which files; none: all that the manifest names, and all that are read of a checkpoint.

    Returns:
        Whether there is a manifest: checkpoints of fastpeer before 0.1.0's release have none.

    Raises:
        UserError: a file is missing, or not as it was written; it is named.
    """
    if not (folder / MANIFEST).is_file():
        return False
    entries = _entries(folder / MANIFEST)
    for name in names or dict.fromkeys([*entries, *_needed(folder)]):
        _check(folder / name, entries.get(name))
    return True


def checked_sha256(weights: Path) -> str:
    """Return a weight file's SHA-256, once it is compared with the checkpoint's that it lies in, if in one.

    Raises:
        UserError: it is not as the checkpoint was written.
    """
    if is_in_checkpoint(weights) and check_files(weights.parent, [weights.name]):
        return recorded_sha256(weights) or file_sha256(weights)
    return file_sha256(weights)


def recorded_sha256(weights: Path) -> str | None:
    """Return the SHA-256 that a checkpoint's manifest has of a weight file; None where there is none.

    Raises:
        UserError: the manifest is damaged.
    """
    manifest = weights.with_name(MANIFEST)
    if not is_in_checkpoint(weights) or not manifest.is_file():
        return None
    return str(_entries(manifest).get(weights.name, {}).get("sha256", "")) or None


def is_in_checkpoint(weights: Path) -> bool:
    """Whether a weight file lies in a checkpoint: beside others, a `manifest.json` may be of anything."""
    return (weights.parent / "state.pt").is_file()


def _needed(folder: Path) -> Iterator[str]:
    yield "state.pt"
    yield from sorted(path.name for path in folder.glob("*.safetensors"))


def _entries(path: Path) -> Mapping[str, Mapping[str, Any]]:
    try:
        content = json.loads(read_text(path))
        number, files = content["format"], content["files"]
        complete = all({"bytes", "sha256"} <= entry.keys() for entry in files.values())
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError):
        number, files, complete = 0, {}, False
    if type(number) is not int or not complete:
        raise UserError(f"{path}: damaged or not a checkpoint's manifest")
    if number > FORMAT:
        raise UserError(
            f"{path}: its format must be {FORMAT} or less for this version of fastpeer, got {number}"
        )
    return dict(files)


def _check(path: Path, entry: Mapping[str, Any] | None) -> None:
    if entry is None:
        raise UserError(f"{path}: damaged, {MANIFEST} does not name it")
    if not path.is_file():
        raise UserError(f"{path} is missing")
    size = path.stat().st_size
    if size != entry["bytes"]:
        raise UserError(f"{path}: damaged, it must have {entry['bytes']} bytes, got {size}")
    if file_sha256(path) != entry["sha256"]:
        raise UserError(f"{path}: damaged, its SHA-256 is not the one in {MANIFEST}")
