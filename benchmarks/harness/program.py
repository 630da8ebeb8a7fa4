"""How a benchmark starts: the arguments that all take, and its one way out."""

import signal
import sys
import warnings
from collections.abc import Callable
from dataclasses import dataclass, fields
from pathlib import Path
from types import FrameType
from typing import Any, TypeVar

import torch
import tyro

from benchmarks.harness.measuring import Duration
from fastpeer.device import choose_device
from fastpeer.errors import UserError


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


Arguments = TypeVar("Arguments")
AT_LEAST_ONE = ("rounds", "batch", "batches", "batch_size", "batch_sizes")
"""Counts without which nothing is measured; of others 0 may mean something, such as all images."""


def start(main: Callable[[Arguments], None], arguments: type[Arguments]) -> None:
    """Read the arguments and run `main`; what the user can fix is one line, without a traceback."""
    # The released losses warn at each call, and a measured step is no place for that.
    warnings.filterwarnings("ignore", message=".*reduction.*", category=UserWarning)
    signal.signal(signal.SIGTERM, _stop)
    try:
        given = tyro.cli(arguments, description=arguments.__doc__)
        check_numbers(given)
        main(given)
    except UserError as error:
        print(error, file=sys.stderr)
        sys.exit(error.exit_code)


def check_numbers(arguments: Any) -> None:
    """Refuse negative numbers in a dataclass, and a count of 0 where there must be some.

    Raises:
        UserError: there is one; a line that names its flag.
    """
    for field in fields(arguments):
        value = getattr(arguments, field.name)
        numbers = value if isinstance(value, (tuple, list)) else (value,)
        low = 1 if field.name in AT_LEAST_ONE and field.default != 0 else 0
        for number in (one for one in numbers if type(one) in (int, float)):
            if not number >= low:  # NaN is none either.
                raise UserError(f"--{field.name.replace('_', '-')} must be {low} or more, got {number}")


def _stop(number: int, frame: FrameType | None) -> None:
    """End as after an error, so that the processes that were started are ended too."""
    sys.exit(128 + number)
