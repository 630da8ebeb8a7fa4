"""What a file with weights tells of them beside its tensors. Importing this does not import PyTorch."""

import json
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open

from fastpeer.errors import UserError, one_line

FACT_PREFIX = "fastpeer."
"""Begins the keys of `WeightFacts` there; their values are JSON too."""


@dataclass(frozen=True, kw_only=True)
class WeightFacts:
    """What a file with weights tells about them; what it does not tell is empty or 0.

    Attributes:
        network: name of the network, as `build_model` takes it.
        classes: number of classes.
        method: name of the method that trained it.
        dataset: name of the data set that it was trained on.
        size: height and width of that data set's images.
        step: number of training steps.
        version: fastpeer's.
    """

    network: str = ""
    classes: int = 0
    method: str = ""
    dataset: str = ""
    size: tuple[int, ...] = ()
    step: int = 0
    version: str = ""

    def metadata(self) -> dict[str, str]:
        """Return the facts that are known as a safetensors file's metadata."""
        return {FACT_PREFIX + name: json.dumps(value) for name, value in asdict(self).items() if value}


def recorded_facts(path: str | Path) -> WeightFacts:
    """Return what a file with weights tells about them; facts that are not of their type are left out.

    Raises:
        UserError: there is no such file.
    """
    metadata = read_metadata(Path(path))
    known: dict[str, Any] = {}
    for field in fields(WeightFacts):
        try:
            value = json.loads(metadata[FACT_PREFIX + field.name])
        except (KeyError, ValueError, RecursionError):
            continue
        value = tuple(value) if isinstance(value, list) else value
        numbers = value if isinstance(value, tuple) else ()
        # Printable: other programs' metadata may hold a terminal's control sequences.
        fits = type(value) is type(field.default) and str(value).isprintable()
        if fits and all(type(number) is int for number in numbers):
            known[field.name] = value
    return WeightFacts(**known)


def read_metadata(path: Path) -> dict[str, str]:
    """Return a safetensors file's metadata, which other programs may have written; empty for other files.

    Raises:
        UserError: there is no such file.
    """
    if not is_safetensors(start_of(path)):
        return {}
    try:
        with safe_open(path, "numpy") as file:
            return dict(file.metadata() or {})
    except (OSError, SafetensorError):
        return {}


def check_safetensors(path: Path) -> None:
    """Check that a file is whole, without reading its tensors.

    Raises:
        UserError: it cannot be read, is damaged or not safetensors.
    """
    try:
        with safe_open(path, "numpy"):
            pass
    except (OSError, SafetensorError) as error:
        raise UserError(f"{path}: damaged or not safetensors ({one_line(error)})") from None


def sort_metadata(path: Path) -> None:
    """Sort the metadata in a safetensors file: the library writes them in an order of chance.

    Files of equal weights and equal metadata then have equal checksums.
    """
    with path.open("r+b") as file:
        length = int.from_bytes(file.read(8), "little")
        header = json.loads(file.read(length))
        header["__metadata__"] = dict(sorted(header.get("__metadata__", {}).items()))
        text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
        # The same characters in another order: only the padding could be longer than it was.
        if len(text) <= length:
            file.seek(8)
            file.write(text.ljust(length))


def is_safetensors(start: bytes) -> bool:
    """Whether a file that starts so is safetensors: the length of a JSON object, and that object."""
    return start[8:9] == b"{"


def start_of(path: Path) -> bytes:
    """Return the first bytes of a file, up to 512.

    Raises:
        UserError: it cannot be read.
    """
    try:
        with path.open("rb") as file:
            return file.read(512)
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror})") from None
