"""How long a training will take: its pace after a warm-up, and what that makes of the steps to come."""

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch

from fastpeer.printing import format_seconds
from fastpeer.step.compile import Compiler
from fastpeer.training.memory import peak_memory

WARM_UP = 3
"""Steps that are not timed: in them functions are compiled, graphs captured, and algorithms tried. One does
where nothing is compiled and it takes as long as the steps that are timed."""
TIMED_STEPS = 20
TIMED_SECONDS = 10.0
"""The pace is measured over so many steps, or over those that take so long."""


class Pace:
    """Times the steps after a warm-up; it waits for the device when it begins and when it has measured.

    Args:
        device: the device of the steps.
        compiler: of the steps; the seconds in which it compiles do not count.
        clock: returns seconds.

    Attributes:
        seconds: of a step; 0 until it is measured.
        steps: number of steps that were timed.
    """

    def __init__(
        self,
        device: torch.device,
        compiler: Compiler | None = None,
        clock: Callable[[], float] = time.perf_counter,
    ) -> None:
        self.seconds = 0.0
        self.steps = 0
        self._device, self._compiler, self._clock = device, compiler, clock
        self._warm_up = WARM_UP
        self._began: float | None = None
        self._started = self._stepping()

    def step_done(self) -> bool:
        """Count a step; return whether the pace was measured with it."""
        if self.seconds:
            return False
        if self._began is None:
            self._warm_up -= 1
            slow = self._compiler is None and self._stepping() - self._started > TIMED_SECONDS
            if self._warm_up <= 0 or slow:
                self._began, self.steps = self._now(), 0
            return False
        self.steps += 1
        if self.steps < TIMED_STEPS and self._stepping() - self._began < TIMED_SECONDS:
            return False
        self.seconds = (self._now() - self._began) / self.steps
        return True

    def pause(self) -> None:
        """Begin anew with the next step, as something other than steps took time."""
        self._began, self._started = None, self._stepping()

    def describe(self, steps: int) -> str:
        """Describe the measured pace, what so many steps take at it, and the memory taken so far."""
        left = f"{steps} steps left take {format_seconds(steps * self.seconds)}, evaluations apart"
        pace = f"{format_seconds(self.seconds)} a step (measured over {self.steps})"
        return f"{pace}: {left}; memory: {peak_memory(self._device)}"

    def _now(self) -> float:
        finish(self._device)
        return self._stepping()

    def _stepping(self) -> float:
        return self._clock() - (sum(self._compiler.seconds.values()) if self._compiler else 0.0)


@dataclass(frozen=True)
class Part:
    """A part of what is to come.

    Attributes:
        what: its name, in the singular.
        count: how often it comes.
        seconds: that each takes.
    """

    what: str
    count: int
    seconds: float

    @property
    def total(self) -> float:
        """Seconds in all."""
        return self.count * self.seconds


def describe_parts(parts: list[Part]) -> Iterator[str]:
    """Yield lines on how long everything will take, and each part of it."""
    parts = [part for part in parts if part.count]
    yield f"estimated time: {format_seconds(sum(part.total for part in parts))}"
    for part in parts:
        each = format_seconds(part.seconds)
        yield f"  {part.what}: {part.count} times {each}, {format_seconds(part.total)}"


def timed(action: Callable[[], object], device: torch.device, compiles: bool) -> float:
    """Return the seconds that an action takes when all is compiled and captured.

    The second time it is compiled; on CUDA the third time captures it (`fastpeer.step.graph.captured`). Where
    nothing is compiled, a first time that takes long will do.
    """
    seconds = _seconds(action, device)
    if compiles or seconds < TIMED_SECONDS:
        for _ in range(3 if device.type == "cuda" else 1):
            seconds = _seconds(action, device)
    return seconds


def _seconds(action: Callable[[], object], device: torch.device) -> float:
    began = time.perf_counter()
    action()
    finish(device)
    return time.perf_counter() - began


def finish(device: torch.device) -> None:
    """Wait until a device has done what was launched."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
