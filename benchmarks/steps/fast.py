"""fastpeer's own step as one of the steps that are compared."""

from dataclasses import fields
from itertools import count, cycle
from typing import Any, Literal

import torch
from torch import nn

from benchmarks.harness.flags import Flags
from benchmarks.steps.cases import Case, measured_table, random_batches, random_teachers
from benchmarks.steps.variants import Build, Built
from fastpeer.config import Config, EngineConfig, Precision, Switch
from fastpeer.step.precision import number_format, ready
from fastpeer.step.step import TrainingStep
from fastpeer.training.networks import build_networks

LONGEST_COMPILE = 150.0
"""Seconds that a function may take to compile here: lest one eats up what all are to be measured in."""


def fast_step(precision: Precision, engine: EngineConfig, needs: str = "") -> Build:
    """Return fastpeer's step with the given parts.

    Args:
        precision: of the whole run.
        engine: which parts are on.
        needs: a part without which the step is not what it is called, and is not measured.
    """

    def build(case: Case, device: torch.device) -> Built:
        # As `set_up` has it in a run.
        Flags(benchmark=True, cudnn_tf32=True, matmul_tf32=False).set()
        number_format(precision).allow_tf32()
        config = case.config(precision, engine)
        said: list[str] = []
        networks = ready_networks(case, config, device)
        step = TrainingStep(config, measured_table(config), networks, said.append, case.size)
        if step.compiler is not None:
            step.compiler.longest = LONGEST_COMPILE
        batches, numbers = cycle(random_batches(case, device, torch.channels_last)), count()

        def run(steps: int) -> None:
            for _ in range(steps):
                step(next(batches), next(numbers))

        return Built(
            run,
            notes=lambda: notes(step, said),
            obstacle=lambda: obstacle(needs, step, said),
        )

    return build


def notes(step: TrainingStep, said: list[str]) -> dict[str, Any]:
    """Return what is to be known of a step that has run."""
    seconds = {} if step.compiler is None else step.compiler.seconds
    return {"plan": step.options.describe(), "said": said, "seconds of compiling": seconds}


def ready_networks(case: Case, config: Config, device: torch.device) -> dict[str, nn.Module]:
    """Build the networks that are trained, and the teachers in the same format."""
    networks = build_networks(config, config.table, case.classes, device, size=case.sides)
    teachers = random_teachers(case, device).items()
    return networks | {role: ready(teacher, config, device) for role, teacher in teachers}


def every_part(switch: Literal["on", "off"], *but: str) -> EngineConfig:
    """Return all parts switched alike, but for some that are switched the other way."""
    other: Switch = "off" if switch == "on" else "on"
    return EngineConfig(**{one.name: other if one.name in but else switch for one in fields(EngineConfig)})


def obstacle(part: str, step: TrainingStep, said: list[str]) -> str:
    """Return why a part is not in use, by the step's options and by what it said while it ran; or nothing."""
    if part and not getattr(step.options, part):
        return step.options.reasons.get(part, "not used")
    # A part that fails when it is first used falls back, and says so.
    return next((line for line in said if part and line.startswith(f"engine.{part}:")), "")
