"""The sections of the suite, most important first: which script, with which arguments, for how long."""

import importlib.util
import sys
from dataclasses import dataclass
from pathlib import Path

import torch

HERE = Path(__file__).resolve().parent


@dataclass(frozen=True)
class Section:
    """A part of the suite.

    Attributes:
        name: of the section and its files.
        words: script and arguments; a script without .py is a module of its own, such as pytest.
        seconds: that it may take.
        obstacle: why it cannot be run; empty if it can.
        reports: it takes --json.
    """

    name: str
    words: tuple[str, ...]
    seconds: float
    obstacle: str = ""
    reports: bool = True

    def command(self, report: Path) -> list[str]:
        """Return the command that writes its report there."""
        script, *rest = self.words
        if not script.endswith(".py"):
            return [sys.executable, "-m", script, *rest]
        into = ("--json", str(report.absolute())) if self.reports else ()
        return [sys.executable, str(HERE / script), *rest, *into]


def cuda_sections(data: Path | None, reference: Path | None) -> list[Section]:
    """Return the sections for a GPU, the most important first; in all they may take longer than there is."""
    theirs = ("--reference", str(reference.absolute())) if reference else ()
    ours = ("--data", str(data.absolute())) if data else ()
    important = [*_checking(), *_main_case(theirs), _methods()]
    return [*important, *_pieces(), *_other_cases(theirs), *_quality(ours, data)]


def _checking() -> list[Section]:
    tests = ("pytest", "-q", "-m", "gpu", "-p", "no:cacheprovider", "-W", "default", "tests")
    small = ("checks.py", "--models", "resnet8", "--precisions", "bf16", "--no-tail", "--parts", "compile")
    large = ("checks.py", "--models", "resnet18", "wideresnet10x1", "mobilenetv2", "--no-compile")
    parts = ("--parts", "fold", "chain", "kernels", "merge", "streams")
    return [
        Section("checks", (*large, *parts), 75),
        Section("tests", (*tests, "--continue-on-collection-errors"), 90),
        Section("kernel-errors", ("kernel_errors.py",), 45, reports=False),
        Section("checks-compiled", (*small, "--part-precisions", "fp32"), 110),
    ]


def _main_case(theirs: tuple[str, ...]) -> list[Section]:
    graphed = ("--parts", "graph", "fold", "chain", "kernels", "merge", "streams", "compile")
    return [
        Section("throughput", ("throughput.py", "--budget", "130", *theirs), 160),
        Section("ablation", ("ablation.py", "--budget", "130", "--rounds", "10"), 160),
        Section("timeline", ("timeline.py", "--budget", "100"), 120),
        # On top of a CUDA graph the parts show what they bring to the device, not to the host.
        Section("ablation-graphed", ("ablation.py", *graphed, "--budget", "120", "--rounds", "10"), 150),
    ]


def _methods() -> Section:
    """One method of each make: an attack on the student alone, one in train mode, one through the teacher."""
    few = ("--rounds", "6", "--budget", "60")
    return Section("methods", ("methods.py", "--methods", "rslad", "ard", "adaad", *few), 210)


def _pieces() -> list[Section]:
    return [
        Section("primitives", ("primitives.py", "--networks", "resnet18"), 90),
        Section("kernels", ("kernels.py", "--rounds", "8", "--seconds", "0.02"), 75),
        Section("roofline", ("roofline.py",), 30),
    ]


def _other_cases(theirs: tuple[str, ...]) -> list[Section]:
    tiny = ("--datasets", "tiny")
    wide = ("--models", "wideresnet34x10")
    few = ("--rounds", "6", "--budget", "150")
    return [
        Section("throughput-tiny", ("throughput.py", *tiny, *few, *theirs), 180),
        Section("throughput-wide", ("throughput.py", *wide, *few, *theirs), 180),
        Section("throughput-512", ("throughput.py", "--batch-sizes", "512", *few, *theirs), 180),
        Section("ablation-tiny", ("ablation.py", *tiny, *few), 180),
        Section("ablation-wide", ("ablation.py", *wide, *few), 180),
    ]


def _quality(ours: tuple[str, ...], data: Path | None) -> list[Section]:
    attacks = ("--model", "resnet18", "--precisions", "fp32", "tf32", "bf16", "fp16")
    loader = ("loader.py", str(data.absolute()) if data else "")
    return [
        Section("attack-strength", ("attack_strength.py", *attacks, *ours), 75),
        Section("accuracy-parity", ("accuracy_parity.py", "--engine.compile", "off", *ours), 150),
        Section("loader", loader, 60, _loader_obstacle(data)),
    ]


def short_sections(device: torch.device) -> list[Section]:
    """Return the same sections, small enough for a CPU core to do all in under a minute."""
    on = ("--device", device.type)
    case = ("--models", "resnet8", "--batch-sizes", "4")
    brief = ("--rounds", "3", "--seconds", "0.02", *on)
    off = ("--engine.compile", "off")
    tests = ("pytest", "-q", "-p", "no:cacheprovider", "tests/kernels/test_pgd_update.py")
    return [
        Section("checks", ("checks.py", *SHORT_CHECKS, *on), 30),
        Section("tests", tests, 30),
        Section("throughput", ("throughput.py", *case, *off, *brief), 30),
        Section("methods", ("methods.py", "--methods", "rslad", "kdiga-ard", *case, *off, *brief), 30),
        Section("ablation", ("ablation.py", *case, "--parts", "fold", "chain", "merge", "graph", *brief), 30),
        Section("timeline", ("timeline.py", *case, "--steps", "1", "--no-others", *off, *brief), 30),
        Section("primitives", ("primitives.py", *SHORT_PRIMITIVES, *brief), 30),
        Section("kernels", ("kernels.py", "--only", "attack_gradient", "--no-compile", *brief), 30),
        Section("roofline", ("roofline.py", "--seconds", "0.1", *on), 30),
        Section("attack-strength", ("attack_strength.py", *SHORT_ATTACKS, *on), 30),
        Section("accuracy-parity", ("accuracy_parity.py", *SHORT_PARITY, *off, *on), 30),
        Section("loader", ("loader.py",), 30, _loader_obstacle(None)),
    ]


SHORT_CHECKS = (
    *("--models", "resnet8", "--batch", "4", "--size", "16", "--steps", "2"),
    *("--no-compile", "--parts", "fold", "merge"),
)
SHORT_PRIMITIVES = ("--networks", "small", "--batches", "4", "--dtypes", "bf16", "--no-compile")
SHORT_ATTACKS = ("--steps", "4", "--batches", "1", "--precisions", "bf16")
SHORT_PARITY = ("--steps", "2", "--seeds", "0", "--precisions", "fp32", "--examples", "32")


def _loader_obstacle(data: Path | None) -> str:
    if data is None:
        return "needs a prepared data set: give --data"
    return "" if importlib.util.find_spec("ffcv") else "needs FFCV, which is not installed here"
