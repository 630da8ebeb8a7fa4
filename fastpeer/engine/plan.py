"""Which parts of the fast step are used, and why: `engine.*` settings, resolved for a device."""

import importlib.util
import os
import shutil
from collections.abc import Callable
from dataclasses import dataclass, fields

import torch

from fastpeer.attack.prepare import Preparation
from fastpeer.config import EngineConfig, Precision, Switch
from fastpeer.engine.precision import NumberFormat
from fastpeer.kernels.choice import Kernels, torch_kernels, triton_kernels


@dataclass(frozen=True)
class Choice:
    """Whether a part is used, and the reason in a few words."""

    used: bool
    reason: str


@dataclass(frozen=True)
class Plan:
    """What each setting of `EngineConfig` came to."""

    fold: bool = False
    chain: bool = False
    merge: bool = False
    compile: bool = False
    graph: bool = False
    kernels: bool = False
    streams: bool = False
    reasons: tuple[tuple[str, str], ...] = ()
    """By part."""

    def formulas(self) -> Kernels:
        """Return the kernels: Triton's or PyTorch's."""
        return triton_kernels() if self.kernels else torch_kernels()

    def preparation(
        self, number_format: NumberFormat, device: torch.device, say: Callable[[str], None]
    ) -> Preparation:
        """Return how networks are attacked under this plan."""
        return Preparation(
            dtype=number_format.autocast or number_format.weights,
            fold=self.fold,
            chain=self.chain,
            compile=self.compile,
            kernels=self.formulas(),
            context=lambda: number_format.autocasting(device),
            say=say,
        )

    def describe(self) -> list[str]:
        """Say in two lines what is used and what is not."""
        used = [name for name, _ in self.reasons if getattr(self, name)]
        unused = [f"{name} ({reason})" for name, reason in self.reasons if not getattr(self, name)]
        lines = [f"engine: {', '.join(used) or 'no fast part'}"]
        return [*lines, f"engine, not used: {'; '.join(unused)}"] if unused else lines


def unheard(line: str) -> None:
    """Drop a line that has nobody to read it."""


def make_plan(
    engine: EngineConfig, device: torch.device, precision: Precision, say: Callable[[str], None] = unheard
) -> Plan:
    """Decide on every part.

    Args:
        engine: the settings.
        device: what is computed on.
        precision: what is computed in.
        say: takes a line for each part that was asked for and cannot be had.
    """
    choices: dict[str, Choice] = {}
    for field in fields(engine):
        switch: Switch = getattr(engine, field.name)
        obstacle = _obstacle(field.name, device, precision, choices)
        choices[field.name] = _choose(field.name, switch, obstacle, device)
        if switch == "on" and obstacle:
            say(f"engine.{field.name}: not used, {obstacle}")
    used = {name: choice.used for name, choice in choices.items()}
    return Plan(**used, reasons=tuple((name, choice.reason) for name, choice in choices.items()))


def _choose(name: str, switch: Switch, obstacle: str, device: torch.device) -> Choice:
    if switch == "off":
        return Choice(False, f"engine.{name} = off")
    if obstacle:
        return Choice(False, obstacle)
    if switch == "on":
        return Choice(True, f"engine.{name} = on")
    unrewarding = _CPU_UNREWARDING if device.type == "cpu" else _CUDA_UNREWARDING
    return Choice(name not in unrewarding, unrewarding.get(name, "auto"))


_CPU_UNREWARDING = {"compile": "no faster than the chain on a CPU"}
"""Parts that auto leaves out, by benchmarks/ablation.py."""
_CUDA_UNREWARDING = {"streams": "not measured yet; peer and student are compiled as one region"}


def _obstacle(name: str, device: torch.device, precision: Precision, choices: dict[str, Choice]) -> str:
    """Return what stands in a part's way, or nothing."""
    if name == "chain" and not choices["fold"].used:
        return "needs engine.fold"
    if name in ("graph", "streams") and device.type != "cuda":
        return "needs CUDA"
    if name == "compile":
        return _compile_obstacle(device)
    return _kernels_obstacle(device, precision) if name == "kernels" else ""


def _compile_obstacle(device: torch.device) -> str:
    if device.type == "cpu" and shutil.which(os.environ.get("CXX", "g++")) is None:
        return "needs a C++ compiler"
    return "" if device.type == "cpu" or _has_triton() else "needs Triton"


def _kernels_obstacle(device: torch.device, precision: Precision) -> str:
    if precision == "fp64":
        return "Triton's kernels compute in float32"
    if not _has_triton():
        return "needs Triton"
    if device.type != "cuda":
        return "needs CUDA"
    return ""


def _has_triton() -> bool:
    return importlib.util.find_spec("triton") is not None
