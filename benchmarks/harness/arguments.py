"""Arguments that all benchmarks take."""

from dataclasses import dataclass
from pathlib import Path

import torch

from benchmarks.harness.timing import Duration
from fastpeer.device import choose_device


@dataclass(frozen=True, kw_only=True)
class Common:
    """Where to measure, how long, and where to write."""

    device: str = "auto"
    """auto, cpu or cuda."""
    json: Path | None = None
    """Write all records there, and the plot beside it; without it nothing is written."""

    def chosen_device(self) -> torch.device:
        """Return the device that `device` names."""
        return choose_device(self.device)

    @property
    def plot(self) -> Path | None:
        """Where the plot goes."""
        return None if self.json is None else self.json.with_suffix(".png")


@dataclass(frozen=True, kw_only=True)
class Timed(Common):
    """How long to measure in alternation."""

    rounds: int = 15
    """Rounds of the alternation, at most."""
    seconds: float = 0.5
    """Seconds of a round for each variant, about."""
    budget: float = 3600.0
    """Seconds for a comparison, about: then nothing more is built and no further round begins; three are done
    in any case."""

    def duration(self) -> Duration:
        """Return what `alternate` takes."""
        return Duration(self.rounds, self.seconds, self.budget)
