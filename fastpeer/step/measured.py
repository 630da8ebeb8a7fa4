"""How much faster each part of the step was where it was measured: what `auto` decides by.

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
    """The work of a training step.

    Attributes:
        network: name of the student's network.
        size: side of its images in pixels; 0: unknown.
        batch: images in a step; 0: unknown.
        precision: see `Config`.
    """

    network: str
    size: int
    batch: int
    precision: str

    @property
    def title(self) -> str:
        """The workload in a few words, for the log."""
        return f"{self.network}, {self.size}×{self.size}, batch {self.batch}, {self.precision}"

    def distance(self, other: "Workload") -> tuple[float, ...]:
        """Return a sort key: precision counts before network, network before sizes; smaller is nearer."""
        # The work grows with the batch and with the square of the images' side.
        doublings = _doublings(self.batch, other.batch) + 2 * _doublings(self.size, other.size)
        return self.precision != other.precision, self.network != other.network, doublings


def _doublings(first: int, second: int) -> float:
    """Return how often the smaller must be doubled to be the larger; 0 if either is unknown."""
    return abs(math.log2(first / second)) if first and second else 0.0


@dataclass(frozen=True, kw_only=True)
class Device:
    """A processor or GPU.

    Attributes:
        kind: cpu or cuda.
        name: as the system or the driver gives it.
        capability: a GPU's compute capability, such as 9.0.
    """

    kind: str
    name: str
    capability: str = ""

    def distance(self, other: "Device") -> tuple[float, ...]:
        """Return a sort key of devices of one kind: equal names first, then compute capability."""
        generations = [float(device.capability or 0) for device in (self, other)]
        return self.name != other.name, abs(generations[0] - generations[1])


@dataclass(frozen=True, kw_only=True)
class Gain:
    """A row of the table: how many times faster a step is with a part than without it.

    Attributes:
        part: a switch of `EngineConfig`.
        ratio: above 1 where it is faster.
        device, workload: where and on what it was measured.
        commit, date: when, in which version.
    """

    part: str
    ratio: float
    device: Device
    workload: Workload
    commit: str
    date: str

    @property
    def reason(self) -> str:
        """The measurement in a few words, for the log."""
        return f"measured {self.ratio:.3g}× on {self.device.name}"


def describe_device(device: torch.device) -> Device:
    """Return the name and capability of a device; of CUDA on a machine without a GPU, only the kind."""
    if device.type != "cuda":
        return Device(kind="cpu", name=cpu_name())
    if not torch.cuda.is_available():
        return Device(kind="cuda", name="")
    major, minor = torch.cuda.get_device_capability(device)
    return Device(kind="cuda", name=torch.cuda.get_device_name(device), capability=f"{major}.{minor}")


def cpu_name() -> str:
    """Return the processor's name from /proc/cpuinfo; elsewhere what Python knows of it."""
    try:
        lines = Path("/proc/cpuinfo").read_text("utf-8").splitlines()
    except OSError:
        lines = []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


@cache
def shipped_gains() -> tuple[Gain, ...]:
    """Return the rows of the package's own table, read once."""
    return read_gains(resources.files(__package__).joinpath(TABLE).read_text("utf-8"))


def read_gains(text: str) -> tuple[Gain, ...]:
    """Parse the JSON text of a table, a list with an object for each row."""
    return tuple(
        Gain(**{**row, "device": Device(**row["device"]), "workload": Workload(**row["workload"])})
        for row in json.loads(text)
    )


def nearest_gain(
    part: str, device: Device, workload: Workload, gains: Sequence[Gain] | None = None
) -> Gain | None:
    """Return a part's row for the nearest device of the same kind, and on it for the nearest workload.

    None: the part was not measured on that kind of device. `gains` is the shipped table by default.
    """
    rows = [row for row in (shipped_gains() if gains is None else gains) if row.part == part]
    rows = [row for row in rows if row.device.kind == device.kind]
    return min(
        rows,
        key=lambda row: (device.distance(row.device), workload.distance(row.workload)),
        default=None,
    )
