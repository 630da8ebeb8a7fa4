"""Everything worth knowing of a GPU, in one command and under nine minutes: checks first, then measurements.

python benchmarks/gpu_suite.py
python benchmarks/gpu_suite.py --sections throughput-wide ablation-tiny --data data/cifar10

Each section is a process of its own with a limit of time, so that a crash, a hang or a full memory costs
that section alone. suite.json is written anew after each of them. Without CUDA a short form of the same
sections runs on the CPU, which says that the suite works and nothing about speed.
"""

import datetime
import json
import re
import time
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from rich.table import Table

from fastpeer.engine.precision import choose_device
from fastpeer.errors import UserError
from harness.facts import device_name, facts
from harness.process import Ended, run_limited
from harness.program import start
from harness.record import write_json
from harness.table import show
from headlines import headline
from sections import Section, cuda_sections, short_sections

HERE = Path(__file__).resolve().parent
LEAST_SECONDS = 15.0
"""A section is not begun with less time left."""


@dataclass(frozen=True, kw_only=True)
class Arguments:
    """Check and measure everything on this machine's GPU."""

    out: Path | None = None
    """Folder for results; without it benchmarks/results/DATE-DEVICE."""
    seconds: float = 525.0
    """For everything; what does not fit any more is named and left out."""
    sections: tuple[str, ...] = ()
    """Names of sections to run; none: all."""
    short: bool = False
    """The short form, also on a GPU."""
    data: Path | None = None
    """A prepared data set, for the loader and the attacks."""
    reference: Path | None = None
    """Checkout of the released code, to be measured too."""
    device: str = "auto"
    """auto, cpu or cuda."""


def main(arguments: Arguments) -> None:
    """Run the sections one after the other, then show a summary."""
    device = choose_device(arguments.device)
    folder = arguments.out or default_folder(device)
    suite = Suite(folder, arguments, device)
    for section in chosen(arguments, device):
        suite.run(section)
    show(suite.summary(), f"written to {folder}")


def default_folder(device: torch.device) -> Path:
    """Return benchmarks/results/DATE-DEVICE."""
    name = re.sub(r"[^a-z0-9]+", "-", device_name(device).lower()).strip("-")
    return HERE / "results" / f"{datetime.date.today():%Y-%m-%d}-{name}"


def chosen(arguments: Arguments, device: torch.device) -> list[Section]:
    """Return the sections to run, most important first.

    Raises:
        UserError: a section that does not exist was asked for.
    """
    if arguments.short or device.type != "cuda":
        sections = short_sections(device)
    else:
        sections = cuda_sections(arguments.data, arguments.reference)
    known = [section.name for section in sections]
    for name in arguments.sections:
        if name not in known:
            raise UserError(f"--sections: there is no {name}; use {', '.join(known)}")
    return [section for section in sections if not arguments.sections or section.name in arguments.sections]


class Suite:
    """Runs sections against the clock and keeps what they find.

    Args:
        folder: for suite.json, suite.log and each section's JSON and plot.
        arguments: of the command.
        device: what is measured.
    """

    def __init__(self, folder: Path, arguments: Arguments, device: torch.device) -> None:
        self.folder = folder
        self.deadline = time.perf_counter() + arguments.seconds
        self.found: dict[str, Any] = {
            "facts": facts(device),
            "settings": asdict(arguments),
            "sections": {},
        }
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "suite.log").write_text("", "utf-8")
        self._save()

    def run(self, section: Section) -> None:
        """Run a section, or say why not, and write what it found."""
        left = self.deadline - time.perf_counter()
        if section.obstacle or left < LEAST_SECONDS:
            reason = section.obstacle or "no time left: raise --seconds, or choose it with --sections"
            self._keep(section, Ended("left out", 0.0, reason))
            return
        show(f"\n== {section.name}, at most {min(section.seconds, left):.0f} s")
        report = self.folder / f"{section.name}.json"
        report.unlink(missing_ok=True)
        command = section.command(report)
        ended = run_limited(command, HERE.parent, min(section.seconds, left), self.folder / "suite.log")
        show(ended.output)
        self._keep(section, ended, _read(report))

    def summary(self) -> Table:
        """Return a line for each section."""
        table = Table("section", "state", "s", "result", title=str(self.found["facts"]["device"]))
        for name, section in self.found["sections"].items():
            table.add_row(name, section["state"], f"{section['seconds']:.0f}", section["headline"])
        return table

    def _keep(self, section: Section, ended: Ended, report: dict[str, Any] | None = None) -> None:
        self.found["sections"][section.name] = {
            **asdict(replace(ended, output="")),
            "last lines": ended.output.splitlines()[-15:],
            "headline": headline(report, ended),
            "report": report,
        }
        self._save()

    def _save(self) -> None:
        write_json(self.folder / "suite.json", self.found)


def _read(path: Path) -> dict[str, Any] | None:
    """Return a section's report, as far as it got."""
    try:
        content: dict[str, Any] = json.loads(path.read_text("utf-8"))
    except (OSError, ValueError):
        return None
    return content


if __name__ == "__main__":
    start(main, Arguments)
