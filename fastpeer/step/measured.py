"""What each part of the fast step brought where it was measured: what `auto` goes by.

The table is `measured.json`; `python benchmarks/auto_table.py` makes its rows from an ablation's results.
"""

import json
import math
import platform
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from importlib import resources
from pathlib import Path

import torch

TABLE = "measured.json"


@dataclass(frozen=True, kw_only=True)
class Workload:
    """What a step computes.

    Attributes:
        network: of the student.
        size: side of its images in pixels; 0: not known.
        batch: images in a step; 0: not known.
        precision: see `Config`.
    """

    network: str
    size: int
    batch: int
    precision: str

    @property
    def title(self) -> str:
        """Name it in a few words."""
        return f"{self.network}, {self.size}×{self.size}, batch {self.batch}, {self.precision}"

    def distance(self, other: "Workload") -> tuple[float, ...]:
        """Say how far another one is: first by the precision, then by the network, then by the sizes."""
        apart = _octaves(self.batch, other.batch) + 2 * _octaves(self.size, other.size)
        return self.precision != other.precision, self.network != other.network, apart


def _octaves(one: int, other: int) -> float:
    """Return how often the smaller must be doubled; where one is not known, it counts as equal."""
    return abs(math.log2(one / other)) if one and other else 0.0


@dataclass(frozen=True, kw_only=True)
class Device:
    """What computes: its kind (cpu or cuda), its name, and a GPU's compute capability such as 9.0."""

    kind: str
    name: str
    capability: str = ""

    def distance(self, other: "Device") -> tuple[float, ...]:
        """Say how far another one of the same kind is: by the name, then by the generation."""
        generations = [float(one.capability or 0) for one in (self, other)]
        return self.name != other.name, abs(generations[0] - generations[1])


@dataclass(frozen=True, kw_only=True)
class Gain:
    """One row: how many times faster a step is with a part than without it.

    Attributes:
        part: a switch of `EngineConfig`.
        ratio: above 1 where it is faster.
        device, workload: what was measured.
        commit, date: of the measurement.
    """

    part: str
    ratio: float
    device: Device
    workload: Workload
    commit: str
    date: str

    @property
    def reason(self) -> str:
        """Say in a few words what was measured."""
        return f"measured {self.ratio:.3g}× on {self.device.name}"


def describe_device(device: torch.device) -> Device:
    """Return what is known of a device; of a GPU that is not there, its kind."""
    if device.type != "cuda":
        return Device(kind="cpu", name=cpu_name())
    if not torch.cuda.is_available():
        return Device(kind="cuda", name="")
    major, minor = torch.cuda.get_device_capability(device)
    return Device(kind="cuda", name=torch.cuda.get_device_name(device), capability=f"{major}.{minor}")


def cpu_name() -> str:
    """Return the processor's name as Linux gives it."""
    try:
        lines = Path("/proc/cpuinfo").read_text("utf-8").splitlines()
    except OSError:
        lines = []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


@cache
def shipped_gains() -> tuple[Gain, ...]:
    """Return the table that is shipped."""
    return read_gains(resources.files(__package__).joinpath(TABLE).read_text("utf-8"))


def read_gains(text: str) -> tuple[Gain, ...]:
    """Read a table; `write_gains` has written it."""
    return tuple(
        Gain(**{**row, "device": Device(**row["device"]), "workload": Workload(**row["workload"])})
        for row in json.loads(text)
    )


def nearest_gain(
    part: str, device: Device, workload: Workload, gains: Sequence[Gain] | None = None
) -> Gain | None:
    """Return a part's row of the nearest device of the same kind, and there of the nearest work; or none."""
    rows = [one for one in (shipped_gains() if gains is None else gains) if one.part == part]
    rows = [one for one in rows if one.device.kind == device.kind]
    return min(
        rows,
        key=lambda one: (device.distance(one.device), workload.distance(one.workload)),
        default=None,
    )
