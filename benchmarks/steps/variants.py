"""The training steps that are compared, each ready to be run so many times; fastpeer's own among them."""

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, fields, replace
from itertools import count, cycle
from typing import Any, Literal

import torch
from torch import nn

from benchmarks.harness.display import Panel
from benchmarks.harness.engine_log import EngineLog
from benchmarks.harness.measuring import (
    Duration,
    Flags,
    Memory,
    MemoryMeter,
    Rounds,
    Run,
    alternate,
    paired_ratios,
    released_flags,
)
from benchmarks.harness.record import Record, Report, counted, record
from benchmarks.steps.cases import Case, measured_table, random_batches, random_teachers
from benchmarks.steps.literal import literal_step
from benchmarks.steps.released import ReleasedCode
from fastpeer.config import AttackPrecision, Config, EngineConfig, Precision, Switch
from fastpeer.errors import UserError, one_line
from fastpeer.step.compile import OUT_OF_TIME
from fastpeer.step.precision import number_format, ready
from fastpeer.step.step import TrainingStep
from fastpeer.training.networks import build_networks

GIBIBYTE = 1 << 30
AUTOCAST = {"bf16": torch.bfloat16, "fp16": torch.float16}


@dataclass(frozen=True)
class Built:
    """A step that is built.

    Attributes:
        run: does so many steps.
        notes: what is to be known about it once it has run, such as the parts that are on.
        obstacle: why it is not what it is called, once it has run; empty if it is.
        hurry: takes the time by `time.perf_counter` after which it is to compile nothing more.
        uncompiled: what runs uncompiled for want of time, once it has run; empty if nothing does.
    """

    run: Run
    notes: Callable[[], dict[str, Any]] = dict
    obstacle: Callable[[], str] = str
    hurry: Callable[[float], None] = lambda deadline: None
    uncompiled: Callable[[], str] = str


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


def prepare(
    build: Build, case: Case, device: torch.device, warm_up: int, seconds: float, even_uncompiled: bool
) -> tuple[Ready, Built]:
    """Build a step, run it warm under its own switches, and measure its memory.

    It may compile for so many seconds; one that needs more is measured `even_uncompiled`, or not at all.

    Raises:
        UserError: it is not what it is called.
    """
    deadline = time.perf_counter() + seconds
    meter = MemoryMeter(device)
    before = Flags.current()
    try:
        built = build(case, device)
        flags = Flags.current()
        built.hurry(deadline)
        built.run(warm_up)
        if reason := built.obstacle() or ("" if even_uncompiled else built.uncompiled()):
            raise UserError(reason)
        return Ready(built.run, flags, meter.of(lambda: built.run(1))), built
    finally:
        before.set()


BUILDING = 0.7
"""Part of a comparison's budget that may go into building."""
COMPILING = 0.8
"""Part of what is left of that for building, that may go into compiling one step."""


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
            left = deadline - time.perf_counter()
            if left < 0:
                raise UserError("no time left to build it: raise --budget")
            warm_up = 5 if device.type == "cuda" else 1
            ready[name], built = prepare(
                builds[name], case, device, warm_up, COMPILING * left, even_uncompiled=name in first
            )
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

    runs = {name: step.run for name, step in ready.items()}
    around = {name: step.around for name, step in ready.items()}
    rounds = alternate(runs, device, left, around, keep)
    if after is not None:
        after(ready)
    return rounds


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
    for entry in report.select("images/s"):
        title = f"{entry.labels['model']}, {entry.labels['dataset']}, batch {entry.labels['batch']}"
        found.setdefault(title, []).append(entry)
    return [Panel(title, bars) for title, bars in found.items()]


LONGEST_COMPILE = 150.0
"""Seconds that a function may take to compile here: lest one eats up what all are to be measured in."""


def fast_step(
    precision: Precision, engine: EngineConfig, needs: str = "", attack: AttackPrecision = "run"
) -> Build:
    """Return fastpeer's step with the given parts.

    Args:
        precision: of the whole run.
        engine: which parts are on.
        needs: a part without which the step is not what it is called, and is not measured.
        attack: precision of its attacks.
    """

    def build(case: Case, device: torch.device) -> Built:
        # As `set_up` has it in a run.
        Flags(benchmark=True, cudnn_tf32=True, matmul_tf32=False).set()
        number_format(precision).allow_tf32()
        config = case.config(precision, engine)
        config = replace(config, attack=replace(config.attack, precision=attack))
        networks = ready_networks(case, config, device)
        with EngineLog() as log:
            step = TrainingStep(config, measured_table(config), networks, case.size)
        if step.compiler is not None:
            step.compiler.longest = LONGEST_COMPILE
        batches, numbers = cycle(random_batches(case, device, torch.channels_last)), count()

        def run(steps: int) -> None:
            with log:
                for _ in range(steps):
                    step.train_on(next(batches), next(numbers))

        return Built(
            run,
            notes=lambda: notes(step, log.lines),
            obstacle=lambda: obstacle(needs, step, log.lines),
            hurry=lambda deadline: hurry(step, deadline),
            uncompiled=lambda: next((line for line in log.lines if OUT_OF_TIME in line), ""),
        )

    return build


def hurry(step: TrainingStep, deadline: float) -> None:
    """Have a step compile nothing after a time."""
    if step.compiler is not None:
        step.compiler.deadline = deadline


def notes(step: TrainingStep, log: list[str]) -> dict[str, Any]:
    """Return what is to be known of a step that has run."""
    seconds = {} if step.compiler is None else step.compiler.seconds
    return {"plan": step.options.describe(), "said": log, "seconds of compiling": seconds}


def ready_networks(case: Case, config: Config, device: torch.device) -> dict[str, nn.Module]:
    """Build the networks that are trained, and the teachers in the same format."""
    networks = build_networks(config, config.table, case.classes, device, size=case.sides)
    teachers = random_teachers(case, device).items()
    return networks | {role: ready(teacher, config, device) for role, teacher in teachers}


def every_part(switch: Literal["on", "off"], *but: str) -> EngineConfig:
    """Return all parts switched alike, but for some that are switched the other way."""
    other: Switch = "off" if switch == "on" else "on"
    return EngineConfig(**{part.name: other if part.name in but else switch for part in fields(EngineConfig)})


def obstacle(part: str, step: TrainingStep, log: list[str]) -> str:
    """Return why a part is not in use, by the step's options and the log of its run; or nothing."""
    if part and not getattr(step.options, part):
        return step.options.reasons.get(part, "not used")
    # A part that fails when it is first used falls back, and logs that.
    return next((line for line in log if part and line.startswith(f"engine.{part}:")), "")
