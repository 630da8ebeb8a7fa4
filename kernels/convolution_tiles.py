"""Which tile a convolution's program computes: the one that was measured to be fastest, else a rule.

`python -m benchmarks.speed.tiles` measures on a GPU and writes what it found, for that kind of GPU, to the
user's cache; the table of the same form beside this file holds what ships. Nothing is measured when a run
starts.
"""

import json
import logging
import math
import os
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from functools import cache
from importlib import resources
from pathlib import Path
from typing import Any

import torch

from fastpeer.errors import one_line

log = logging.getLogger(__name__)
TABLE = "convolution_tiles.json"
HOPPER = 9
"""Its compute capability: it brought the copy engine."""
LARGE_PLANE = 16
"""Sides of an image, behind the stride, from which on three stages are faster than four."""


@dataclass(frozen=True)
class Tile:
    """What one program computes, and how.

    Attributes:
        pixels: of the output; a power of two.
        channels: of the output; a power of two.
        warps: 4 or 8.
        stages: of the product's loop, of which that many are under way.

    Raises:
        ValueError: a number is none of these.
    """

    pixels: int = 128
    channels: int = 64
    warps: int = 4
    stages: int = 4

    def __post_init__(self) -> None:
        sizes = all(size in (16, 32, 64, 128, 256) for size in (self.pixels, self.channels))
        if not sizes or self.warps not in (4, 8) or self.stages not in range(1, 9):
            raise ValueError(f"a tile must be 16 to 256, a power of two, each way, got {self}")

    def __str__(self) -> str:
        return f"{self.pixels} × {self.channels}, {self.warps} warps, {self.stages} stages"


TILES = (
    Tile(128, 128, 8, 3),
    Tile(128, 64, 4, 3),
    Tile(128, 128, 8, 4),
    Tile(128, 64, 4, 4),
    Tile(256, 64, 4, 3),
    Tile(256, 128, 8, 3),
)
"""Those worth measuring on Hopper and later, the most promising first."""
TILES_BY_ADDRESS = (Tile(128, 64, 8, 3), Tile(128, 128, 8, 3), Tile(64, 64, 4, 3), Tile(128, 64, 8, 4))
"""Those worth measuring on GPUs before."""


@dataclass(frozen=True)
class Problem:
    """A convolution, forward or back.

    Attributes:
        side, stride: of the convolution.
        into, out: its channels.
        height, width: of the images in front of it, in pixels.
        batch: images.
        dtype: bfloat16 or float16.
        back: it is the gradient at these images that is computed.
    """

    side: int
    stride: int
    into: int
    out: int
    height: int
    width: int
    batch: int
    dtype: str
    back: bool

    def distance(self, other: "Problem") -> float | None:
        """Return how often the smaller batch must be doubled to be the other's; none: the rest differs."""
        same = {**asdict(self), "batch": 0} == {**asdict(other), "batch": 0}
        return abs(math.log2(self.batch / other.batch)) if same else None


@dataclass(frozen=True)
class Row:
    """A row of a table: the fastest tile for a problem on a device, named as the driver does, and its µs."""

    device: str
    problem: Problem
    tile: Tile
    microseconds: float


def tile_for(problem: Problem, device: torch.device, boxes: bool) -> Tile:
    """Return the tile that was measured to be fastest, of the nearest batch, else what a rule says.

    `boxes`: the copy engine moves them.
    """
    rows = _rows_on(device.index or 0) if device.type == "cuda" and boxes == has_copy_engine(device) else ()
    known = [(problem.distance(row.problem), row.tile) for row in rows]
    near = [(distance, tile) for distance, tile in known if distance is not None]
    return min(near, key=lambda one: one[0])[1] if near else usual_tile(problem, boxes)


def usual_tile(problem: Problem, boxes: bool = True) -> Tile:
    """Return the tile that took least time on an H200 at the stages of ResNet-18; without boxes, a guess."""
    if not boxes:
        # All GPUs from Ampere on have that much shared memory.
        return Tile(128, 64, 8, 3)
    return Tile(128, 128, 8, 3 if problem.height // problem.stride >= LARGE_PLANE else 4)


def has_copy_engine(device: torch.device) -> bool:
    """Tell whether a GPU has the engine that copies boxes; for the interpreter, a CPU has."""
    return device.type != "cuda" or torch.cuda.get_device_capability(device)[0] >= HOPPER


def tiles_of(device: torch.device) -> tuple[Tile, ...]:
    """Return the tiles worth measuring on a device."""
    return TILES if has_copy_engine(device) else TILES_BY_ADDRESS


@cache
def _rows_on(device: int) -> tuple[Row, ...]:
    """Return the rows of both tables for a GPU, the user's first; read once."""
    name = torch.cuda.get_device_name(device)
    return tuple(row for row in known_rows() if row.device == name)


def known_rows() -> list[Row]:
    """Return the rows of the user's table and then of the package's; a damaged table costs a warning."""
    own = users_table()
    found: list[Row] = []
    try:
        found += read_rows(own.read_text("utf-8")) if own.is_file() else []
    except (OSError, ValueError, TypeError, KeyError) as error:
        log.warning("%s: no table of tiles, so it is not used (%s)", own, one_line(error))
    return found + read_rows(resources.files(__package__).joinpath(TABLE).read_text("utf-8"))


def users_table() -> Path:
    """Return where the table of this user's GPUs lies: fastpeer/ in the folder for caches."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "fastpeer" / TABLE


def read_rows(text: str) -> list[Row]:
    """Parse the JSON text of a table.

    Raises:
        ValueError, TypeError or KeyError: it is none.
    """
    return [read_row(entry) for entry in json.loads(text)]


def read_row(entry: dict[str, Any]) -> Row:
    """Return a row as `read_rows` finds it."""
    problem, tile = Problem(**entry["problem"]), Tile(**entry["tile"])
    return Row(str(entry["device"]), problem, tile, float(entry["microseconds"]))


def merged(former: Iterable[Row], later: Iterable[Row]) -> list[Row]:
    """Return the rows of two tables; where both answer a question, the later holds."""
    rows = {(row.device, row.problem): row for row in (*former, *later)}
    return [rows[question] for question in sorted(rows, key=str)]
