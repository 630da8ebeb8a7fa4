"""The training steps that are compared, each ready to be run so many times."""

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from itertools import cycle
from typing import Any

import torch

from benchmarks.harness.flags import Flags, released_flags
from benchmarks.harness.memory import Memory, MemoryMeter
from benchmarks.harness.plot import Panel
from benchmarks.harness.record import Record, Report, counted, record
from benchmarks.harness.timing import Duration, Rounds, Run, alternate, paired_ratios
from benchmarks.steps.cases import Case, random_batches
from benchmarks.steps.literal import literal_step
from benchmarks.steps.released import ReleasedCode
from fastpeer.config import Precision
from fastpeer.errors import UserError, one_line

GIBIBYTE = 1 << 30
AUTOCAST = {"bf16": torch.bfloat16, "fp16": torch.float16}


@dataclass(frozen=True)
class Built:
    """A step that is built.

    Attributes:
        run: does so many steps.
        notes: what is to be known about it once it has run, such as the parts that are on.
        obstacle: why it is not what it is called, once it has run; empty if it is.
    """

    run: Run
    notes: Callable[[], dict[str, Any]] = dict
    obstacle: Callable[[], str] = str


Build = Callable[[Case, torch.device], Built]


@dataclass(frozen=True)
class Ready:
    """A step that is built and warm, with the switches it runs under and the memory it takes."""

    run: Run
    flags: Flags
    memory: Memory | None

    def around(self) -> AbstractContextManager[object]:
        """Return the context of its rounds."""
        return self.flags.applied()


def literal(case: Case, device: torch.device) -> Built:
    """Build the released step in float32, NCHW."""
    return _literal(case, device, torch.contiguous_format, None)


def literal_amp(precision: Precision) -> Build:
    """Return the released step under autocast to a precision, channels-last."""
    return lambda case, device: _literal(case, device, torch.channels_last, AUTOCAST[precision])


def _literal(
    case: Case, device: torch.device, layout: torch.memory_format, autocast: torch.dtype | None
) -> Built:
    released_flags().set()
    step = literal_step(case, device, layout, autocast)
    batches = cycle(random_batches(case, device, layout))

    def run(steps: int) -> None:
        for _ in range(steps):
            batch = next(batches)
            step(batch.images, batch.labels)

    return Built(run)


def released_code(code: ReleasedCode) -> Build:
    """Return the authors' own step, from a checkout of their repository."""

    def build(case: Case, device: torch.device) -> Built:
        released_flags().set()
        batches = random_batches(case, device, torch.contiguous_format)
        return Built(code.runner(case, device, batches))

    return build


def prepare(build: Build, case: Case, device: torch.device, warm_up: int) -> tuple[Ready, Built]:
    """Build a step, run it warm under its own switches, and measure its memory."""
    meter = MemoryMeter(device)
    before = Flags.current()
    try:
        built = build(case, device)
        flags = Flags.current()
        built.run(warm_up)
        if reason := built.obstacle():
            raise UserError(reason)
        return Ready(built.run, flags, meter.of(lambda: built.run(1))), built
    finally:
        before.set()


BUILDING = 0.7
"""Part of a comparison's budget that may go into building."""


def build_all(
    builds: Mapping[str, Build], case: Case, device: torch.device, report: Report, seconds: float,
    first: Sequence[str] = (),
) -> dict[str, Ready]:  # fmt: skip
    """Build all steps and run them warm; what cannot be built, or not in time, is named in the report.

    `first` names those that are worth having above all, so that it is not they that the time does not reach.
    """
    ready: dict[str, Ready] = {}
    deadline = time.perf_counter() + BUILDING * seconds
    for name in sorted(builds, key=lambda name: name not in first):
        try:
            if time.perf_counter() > deadline:
                raise UserError("no time left to build it: raise --budget")
            warm_up = 5 if device.type == "cuda" else 1
            ready[name], built = prepare(builds[name], case, device, warm_up)
            report.notes.setdefault("variants", {}).setdefault(case.title, {})[name] = built.notes()
        except Exception as error:  # Compilers and libraries raise whatever they like.
            report.miss(name, one_line(error)[:300], **case.labels)
    return {name: ready[name] for name in builds if name in ready}


def compare(
    builds: Mapping[str, Build], case: Case, device: torch.device, duration: Duration, report: Report,
    first: Sequence[str] = (), after: Callable[[Mapping[str, Ready]], None] | None = None,
) -> dict[str, Rounds]:  # fmt: skip
    """Build and measure steps of one case in alternation; `first` is built first, `after` gets what is built.

    Records images/s, memory in GiB, and how many times faster each is than the first and than the one before,
    round by round.
    """
    began = time.perf_counter()
    ready = build_all(builds, case, device, report, duration.budget, first)
    left = replace(duration, budget=duration.budget - (time.perf_counter() - began))
    before = list(report.records)

    def keep(found: dict[str, Rounds]) -> None:
        report.records = [*before, *_compared(list(builds), case, found, ready)]
        report.save()

    runs, around = ({name: get(one) for name, one in ready.items()} for get in (_run_of, _around))
    rounds = alternate(runs, device, left, around, keep)
    if after is not None:
        after(ready)
    return rounds


def _run_of(ready: Ready) -> Run:
    return ready.run


def _around(ready: Ready) -> Callable[[], AbstractContextManager[object]]:
    return ready.around


def _compared(
    names: list[str], case: Case, rounds: Mapping[str, Rounds], ready: Mapping[str, Ready]
) -> Iterator[Record]:
    """Yield what is known of all variants."""
    for name, above in zip(names, names[:1] + names, strict=False):
        if name in rounds:
            yield from _records(name, case, rounds[name], ready[name].memory)
            for unit, base in (("times the first", names[0]), ("times the one above", above)):
                # Without its base there is no ratio, rather than one to another.
                if base in rounds:
                    yield record(name, paired_ratios(rounds[base], rounds[name]), unit, **case.labels)


def _records(name: str, case: Case, found: Rounds, memory: Memory | None) -> list[Record]:
    records = [record(name, found.rates(case.batch), "images/s", **case.labels)]
    if memory is not None:
        records += [
            counted(name, memory.allocated / GIBIBYTE, "GiB allocated", **case.labels),
            counted(name, memory.reserved / GIBIBYTE, "GiB reserved", **case.labels),
        ]
    return records


def case_panels(report: Report) -> list[Panel]:
    """Return a plot's panels: the images/s of each case."""
    found: dict[str, list[Record]] = {}
    for one in report.select("images/s"):
        title = f"{one.labels['model']}, {one.labels['dataset']}, batch {one.labels['batch']}"
        found.setdefault(title, []).append(one)
    return [Panel(title, bars) for title, bars in found.items()]
