"""Which parts of the fast step are used, and why: the `engine.*` settings, resolved for a device."""

import importlib.util
import os
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from types import MappingProxyType
from typing import TypeVar

import torch

from fastpeer.config import AttackConfig, Config, EngineConfig, Switch
from fastpeer.kernels.batch_norm import BatchNorm
from fastpeer.kernels.choice import Kernels, torch_kernels, triton_kernels
from fastpeer.step.compile import Compiler
from fastpeer.step.graph import captured
from fastpeer.step.measured import Device, Gain, Workload, describe_device, nearest_gain
from fastpeer.step.precision import NumberFormat
from fastpeer.victims.factory import OwnKernels, VictimFactory

Result = TypeVar("Result")
DOUBTFUL = (
    "streams",
    "convolutions",
    "other_convolutions",
    "sign_bits",
    "stem",
    "stem_step",
    "head",
    "batchnorm",
)
"""Parts that auto takes only where they were measured: they may be slower than what they are in place of, or
cost the compiling of whole regions."""
TOGETHER = {"stem": "convolutions", "head": "convolutions", "streams": "batchnorm"}
"""Parts that auto takes only with another: by itself either costs the compiling of the attack, or of student
and peer as one region, which with the other is gone in any case."""
AMPERE, HOPPER = 8.0, 9.0
"""Their compute capabilities."""
OF_COPY_ENGINE = ("convolutions", "other_convolutions", "sign_bits")
"""Parts that run otherwise on Hopper and later, whose copy engine moves their data, than on GPUs before."""
GUESS = "a guess"
"""The reason given for a part that was not measured on any device of the kind."""


@dataclass(frozen=True)
class Choice:
    """The decision on one part.

    Attributes:
        used: whether the step uses it.
        reason: why, in a few words for the log.
        gain: the measurement that decided, if one did.
    """

    used: bool
    reason: str
    gain: Gain | None = None


@dataclass(frozen=True)
class Options:
    """The parts that a step uses; each field of `EngineConfig` resolved to a boolean."""

    fold: bool = False
    chain: bool = False
    merge: bool = False
    compile: bool = False
    graph: bool = False
    kernels: bool = False
    convolutions: bool = False
    other_convolutions: bool = False
    sign_bits: bool = False
    stem: bool = False
    stem_step: bool = False
    head: bool = False
    batchnorm: bool = False
    streams: bool = False
    double_backward: bool = False
    choices: tuple[tuple[str, Choice], ...] = ()
    """Name and decision of each part, in the order of `EngineConfig`."""
    refused: tuple[str, ...] = ()
    """A line of warning for each part that is set to on but cannot be used."""

    def formulas(self) -> Kernels:
        """Return the implementations of the formulas, in Triton or PyTorch."""
        return triton_kernels() if self.kernels else torch_kernels()

    def batch_norm(self) -> BatchNorm | None:
        """Return what normalises in the training passes; none: PyTorch's own operators do."""
        return replace(self.formulas().batch_norm, keeps_signs=self.sign_bits) if self.batchnorm else None

    def victim_factory(
        self, number_format: NumberFormat, device: torch.device, compiler: Compiler | None = None,
        gradient_scale: float = AttackConfig.gradient_scale,
    ) -> VictimFactory:  # fmt: skip
        """Return a factory of victims under these options, compiled if a compiler is given."""
        return VictimFactory(
            dtype=number_format.autocast or number_format.weights,
            fold=self.fold,
            chain=self.chain,
            compiler=compiler,
            kernels=self.formulas(),
            context=lambda: number_format.autocasting(device),
            own=OwnKernels(**{part.name: getattr(self, part.name) for part in fields(OwnKernels)}),
            gradient_scale=gradient_scale,
        )

    def recorded(
        self, function: Callable[..., Result], device: torch.device, what: str
    ) -> Callable[..., Result]:
        """Return a function of tensors, captured if graphs are used (see `captured`), else unchanged.

        `what` names the function in the log.
        """
        return captured(function, device, what) if self.graph else function

    @property
    def reasons(self) -> dict[str, str]:
        """By part, why it is used or not."""
        return {name: choice.reason for name, choice in self.choices}

    def describe(
        self, differentiates_twice: bool = False, idle: Mapping[str, str] = MappingProxyType({})
    ) -> list[str]:
        """Return one or two lines for the log: which parts are used, by which measurement, and which are not.

        Args:
            differentiates_twice: double_backward matters, so name it.
            idle: why parts that were chosen have nothing to do in this run, by part.
        """
        choices = [
            (name, Choice(False, idle[name]) if choice.used and name in idle else choice)
            for name, choice in self.choices
            if name != "double_backward" or differentiates_twice
        ]
        used = [(name, choice) for name, choice in choices if choice.used]
        unused = [f"{name} ({choice.reason})" for name, choice in choices if not choice.used]
        lines = [f"engine: {', '.join(name for name, _ in used) or 'no fast part'}{_basis(used)}"]
        return [*lines, f"engine, not used: {'; '.join(unused)}"] if unused else lines


def _basis(used: list[tuple[str, Choice]]) -> str:
    """Return in parentheses what auto chose these parts by: measurements, or a guess."""
    gains = [choice.gain for _, choice in used if choice.gain is not None]
    devices = dict.fromkeys(f"measured on {gain.device.name} with {gain.workload.title}" for gain in gains)
    guessed = [name for name, choice in used if choice.reason == GUESS]
    notes = [*devices, *([f"{', '.join(guessed)} {GUESS}"] if guessed else [])]
    return f" ({'; '.join(notes)})" if notes else ""


def options_of(config: Config, device: torch.device, size: int = 0) -> Options:
    """Decide on every part of a run's step; `size` is the side of its images in pixels, 0 if unknown."""
    batch = config.train.batch_size
    workload = Workload(network=config.model.student, size=size, batch=batch, precision=config.precision)
    return choose_options(config.engine, device, workload)


def choose_options(engine: EngineConfig, device: torch.device, workload: Workload) -> Options:
    """Decide on every part of a step.

    Args:
        engine: the settings; auto uses the parts that were measured to be faster on the nearest device.
        device: runs the step.
        workload: the step's work, by which the nearest measurement is found.
    """
    choices: dict[str, Choice] = {}
    refused = []
    for field in fields(engine):
        switch: Switch = getattr(engine, field.name)
        obstacle = _obstacle(field.name, device, workload.precision, choices)
        leader = TOGETHER.get(field.name, "")
        if switch == "auto" and leader and not choices[leader].used:
            obstacle = obstacle or f"only with engine.{leader}"
        choices[field.name] = _choose(field.name, switch, obstacle, device, workload)
        if switch == "on" and obstacle:
            refused.append(f"engine.{field.name}: not used, {obstacle}")
    used = {name: choice.used for name, choice in choices.items()}
    return Options(**used, choices=tuple(choices.items()), refused=tuple(refused))


def _choose(name: str, switch: Switch, obstacle: str, device: torch.device, workload: Workload) -> Choice:
    if switch == "off":
        return Choice(False, f"engine.{name} = off")
    if obstacle:
        return Choice(False, obstacle)
    if switch == "on":
        return Choice(True, f"engine.{name} = on")
    gain = _gain(name, describe_device(device), workload)
    if gain is None:
        return Choice(name not in DOUBTFUL, GUESS)
    return Choice(gain.ratio >= 1, gain.reason, gain)


def _gain(name: str, device: Device, workload: Workload) -> Gain | None:
    """Return the nearest measurement that says something of a part on a device."""
    gain = nearest_gain(name, device, workload)
    if (
        gain is not None
        and name in OF_COPY_ENGINE
        and _has_copy_engine(gain.device) != _has_copy_engine(device)
    ):
        return None
    return gain


def _has_copy_engine(device: Device) -> bool:
    return float(device.capability or 0) >= HOPPER


def _obstacle(name: str, device: torch.device, precision: str, choices: dict[str, Choice]) -> str:
    """Return why a part cannot be used, "" if it can; `choices` holds the parts decided before it."""
    if name == "chain" and not choices["fold"].used:
        return "needs engine.fold"
    if name in ("graph", "streams") and device.type != "cuda":
        return "needs CUDA"
    if name in ("stem", "head"):
        return _lacking(("chain", "kernels"), choices)
    if name == "stem_step":
        return _lacking(("stem",), choices)
    if name in ("other_convolutions", "sign_bits"):
        return _lacking(("convolutions",), choices)
    if name == "compile":
        return _compile_obstacle(device)
    if name == "convolutions":
        return _convolutions_obstacle(device, precision, choices)
    if name == "batchnorm":
        # On a CPU there is the plain formula, for tests of the passes.
        return _lacking(("kernels",), choices) if device.type == "cuda" else ""
    return _kernels_obstacle(device, precision) if name == "kernels" else ""


def _lacking(parts: Sequence[str], choices: Mapping[str, Choice]) -> str:
    """Return which of the parts that another needs are not used, "" if all are."""
    missing = [f"engine.{part}" for part in parts if not choices[part].used]
    return f"needs {' and '.join(missing)}" if missing else ""


def _compile_obstacle(device: torch.device) -> str:
    if device.type != "cpu":
        return _triton_obstacle()
    return "" if shutil.which(os.environ.get("CXX", "g++")) else "needs a C++ compiler"


def _kernels_obstacle(device: torch.device, precision: str) -> str:
    if precision == "fp64":
        return "Triton's kernels compute in float32"
    return _triton_obstacle() if device.type == "cuda" else "needs CUDA"


def _convolutions_obstacle(device: torch.device, precision: str, choices: dict[str, Choice]) -> str:
    if lacking := _lacking(("chain", "kernels"), choices):
        return lacking
    if precision not in ("bf16", "fp16"):
        return "needs bf16 or fp16"
    # What its matrix products take came with Ampere.
    capability = float(describe_device(device).capability or 0)
    return "" if capability >= AMPERE else f"needs a GPU of compute capability {AMPERE} or more"


def _triton_obstacle() -> str:
    """Return why Triton cannot launch a kernel on CUDA, "" if it can."""
    if importlib.util.find_spec("triton") is None:
        return "needs Triton"
    # Triton compiles the code that launches a kernel.
    compilers = [os.environ["CC"]] if "CC" in os.environ else ["gcc", "clang"]
    return "" if any(shutil.which(compiler) for compiler in compilers) else "needs a C compiler"
