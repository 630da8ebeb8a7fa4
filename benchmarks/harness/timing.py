"""Measuring variants in alternation: A, B, C, A, B, C, … so that drifts of the machine hit all alike."""

import time
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field

import torch

Run = Callable[[int], None]
"""Does so many steps."""


@dataclass
class Rounds:
    """What alternation yields for one variant.

    Attributes:
        steps: done in each round.
        seconds: for one step, round by round.
    """

    steps: int
    seconds: list[float] = field(default_factory=list)

    def rates(self, per_step: float) -> list[float]:
        """Return units a second, given how many of them a step handles."""
        return [per_step / one for one in self.seconds]


@dataclass(frozen=True)
class Duration:
    """How long to measure.

    Attributes:
        rounds: of the alternation, at most.
        seconds: of a round for each variant, about.
        budget: seconds after which no further round begins; three are done in any case. Whoever builds the
            variants beforehand keeps to the same budget.
    """

    rounds: int
    seconds: float
    budget: float = 3600.0


LEAST_ROUNDS = 3
MOST_STEPS = 2000


def alternate(
    runs: Mapping[str, Run],
    device: torch.device,
    duration: Duration,
    around: Mapping[str, Callable[[], AbstractContextManager[object]]] | None = None,
    keep: Callable[[dict[str, Rounds]], None] = lambda found: None,
) -> dict[str, Rounds]:
    """Measure all variants in turn, round after round; they are to be warm already.

    Args:
        runs: what to measure, by name.
        device: where it computes.
        duration: how long.
        around: a context for a variant's rounds, such as the backend flags it wants.
        keep: takes what is known after each round, lest it is lost.
    """
    deadline = time.perf_counter() + duration.budget
    contexts = {name: (around or {}).get(name, nullcontext) for name in runs}
    found = {}
    for name, run in runs.items():
        with contexts[name]():
            found[name] = Rounds(_steps_lasting(duration.seconds, run, device))
    for number in range(duration.rounds):
        if number >= LEAST_ROUNDS and time.perf_counter() > deadline:
            break
        for name, run in runs.items():
            with contexts[name]():
                found[name].seconds.append(seconds_of(run, found[name].steps, device) / found[name].steps)
        keep(found)
    return found


def seconds_of(run: Run, steps: int, device: torch.device) -> float:
    """Return how long `steps` steps take: by CUDA events there, else by the host's clock."""
    if device.type == "cuda":
        return _cuda_seconds(run, steps, device)
    began = time.perf_counter()
    run(steps)
    return time.perf_counter() - began


def paired_ratios(base: Rounds, other: Rounds) -> list[float]:
    """Return how many times faster `other` is, round by round: each against the base's time beside it."""
    return [slow / fast for slow, fast in zip(base.seconds, other.seconds, strict=True)]


def _cuda_seconds(run: Run, steps: int, device: torch.device) -> float:
    start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))  # type: ignore[no-untyped-call]
    # From an idle device on: the host's own time before the first kernel counts too.
    torch.cuda.synchronize(device)
    start.record()
    run(steps)
    end.record()
    torch.cuda.synchronize(device)
    return float(start.elapsed_time(end)) / 1e3


def _steps_lasting(seconds: float, run: Run, device: torch.device) -> int:
    one = max(seconds_of(run, 1, device), 1e-6)
    # A single step can be mostly launch; a few more tell its cost in a row.
    few = min(max(int(seconds / 4 / one), 1), 20)
    each = max(seconds_of(run, few, device) / few, 1e-7)
    return min(max(round(seconds / each), 1), MOST_STEPS)
