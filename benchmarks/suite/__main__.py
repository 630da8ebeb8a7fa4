"""Everything worth knowing of a GPU, in stages, the most valuable first; each stage is one command.

python -m benchmarks.suite first --out RESULTS     right, and how fast? at most 5 minutes
python -m benchmarks.suite speed --out RESULTS     what brings what, other networks; at most 8 minutes
python -m benchmarks.suite train --out RESULTS     a short training, attacked; at most 9 minutes
python -m benchmarks.suite rest --out RESULTS      methods, kernels, evaluation, loader, attack strength
python -m benchmarks.suite collect --out RESULTS FOLDER …     puts folders of several calls together

Each section is a process of its own with a limit of time: a crash, a hang or a full memory costs that section
alone. RESULTS keeps what earlier stages found; it holds suite.json, suite.log, and archives of plots, of the
runs' records and of compiled code. --short, and any machine without CUDA, runs the same sections in a short
form, which shows that they work and says nothing about speed.
"""

import datetime
import os
import re
import signal
import sys
import tarfile
import tempfile
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from types import FrameType
from typing import Literal

import tyro
from rich.table import Table

from benchmarks.harness.display import show
from benchmarks.harness.program import start
from benchmarks.harness.record import device_name, facts, read_json, write_json
from benchmarks.speed.auto_table import gains_of
from benchmarks.suite.findings import Findings, merged, unpack_plots
from benchmarks.suite.runner import Course, Runner
from benchmarks.suite.stages import HERE, SECONDS, STAGES, Section
from fastpeer.device import choose_device
from fastpeer.errors import UserError
from fastpeer.step.measured import TABLE

NEXT = {"first": "speed", "speed": "train", "train": "rest"}
COMMAND = "python -m benchmarks.suite"


@dataclass(frozen=True, kw_only=True)
class Arguments:
    """Run a stage on this machine's GPU, or collect folders."""

    stage: tyro.conf.Positional[Literal["first", "speed", "train", "rest", "collect"]]
    """Which."""
    folders: tyro.conf.Positional[tuple[Path, ...]] = ()
    """For collect: results of earlier calls, the latest last."""
    out: Path | None = None
    """Folder for results; without it benchmarks/results/DATE-DEVICE."""
    seconds: float = 0.0
    """For the stage; what does not fit any more is named and left out. 0: the stage's own."""
    sections: tuple[str, ...] = ()
    """Names of sections to run; none: all of the stage."""
    short: bool = False
    """The short form, also on a GPU."""
    work: Path | None = None
    """Folder that lasts from one stage to the next: compiled code, images, runs. Default: in the system's
    folder for temporary files."""
    images: Path | None = None
    """Archive of an image folder (train/CLASS/…, test/CLASS/…), for training and whatever needs images."""
    reference: Path | None = None
    """Checkout of the released code, to be measured too."""
    bundle: Path | None = None
    """Folder that tools/offline_bundle.sh has made: images, reference and compiled code are taken from there.
    Default: what FASTPEER_BUNDLE names."""
    device: str = "auto"
    """auto, cpu or cuda."""


def main(arguments: Arguments, gone: float = 0.0) -> None:
    """Run the stage, or collect; so many seconds of its time are gone already."""
    if arguments.stage == "collect":
        collect(arguments)
        return
    sections = chosen(arguments)
    device = choose_device(arguments.device)
    cuda = device.type == "cuda"
    out = (arguments.out or default_folder(device_name(device))).absolute()
    form = "short" if arguments.short or not cuda else "whole"
    work = (arguments.work or Path(tempfile.gettempdir()) / "fastpeer-suite").absolute() / form
    given = in_bundle(arguments)
    prepare_folders(out, work, given.pop("cache", ""))
    findings = Findings(out, work, {"facts": facts(device), "settings": settings(arguments, cuda)})
    course = Course(
        short=form == "short", work=work,
        seconds=(arguments.seconds or SECONDS[arguments.stage]) - gone,
        logs=out, given=given, cuda=cuda,
        keep=lambda section, ended, report: findings.keep(arguments.stage, section, ended, report),
    )  # fmt: skip
    stopped = run(Runner(course), sections)
    write_gains(findings)
    left_behind = findings.save_compiled_code(work / "cache") if cuda else ""
    lines = [f"written to {out}", *([left_behind] if left_behind else [])]
    show(summary(findings, arguments.stage), *lines, *next_commands(findings, arguments))
    if stopped:
        sys.exit(130)


def seconds_since_start() -> float:
    """Return how long this process runs: importing PyTorch is part of a stage's time."""
    began = int(Path("/proc/self/stat").read_text().rpartition(")")[2].split()[19])
    return time.clock_gettime(time.CLOCK_BOOTTIME) - began / os.sysconf("SC_CLK_TCK")


def chosen(arguments: Arguments) -> list[Section]:
    """Return the sections to run, most valuable first.

    Raises:
        UserError: one that the stage does not have was asked for.
    """
    if arguments.folders:
        raise UserError(f"the stage {arguments.stage} takes no folders; collect does")
    sections = STAGES[arguments.stage]
    known = [section.name for section in sections]
    for name in arguments.sections:
        if name not in known:
            raise UserError(f"--sections: {arguments.stage} has no {name}; use {', '.join(known)}")
    return [section for section in sections if not arguments.sections or section.name in arguments.sections]


def default_folder(device: str) -> Path:
    """Return benchmarks/results/DATE-DEVICE."""
    name = re.sub(r"[^a-z0-9]+", "-", device.lower()).strip("-")
    return HERE / "results" / f"{datetime.date.today():%Y-%m-%d}-{name}"


def in_bundle(arguments: Arguments) -> dict[str, str]:
    """Return what the sections are given: as the command says, or as a bundle has it.

    Raises:
        UserError: something that was named is not there.
    """
    named = os.environ.get("FASTPEER_BUNDLE", "")
    bundle = arguments.bundle or (Path(named) if named else None)
    found: dict[str, Path | None] = {
        "images": arguments.images,
        "reference": arguments.reference,
        "cache": None,
    }
    if bundle is not None:
        if not bundle.is_dir():
            raise UserError(f"--bundle {bundle}: no such folder; tools/offline_bundle.sh makes one")
        archives = sorted((bundle / "images").glob("*"))
        others: dict[str, Path | None] = {
            "images": archives[0] if archives else None,
            "reference": bundle / "reference", "cache": bundle / "cache.tar.gz",
        }  # fmt: skip
        found = {name: path or others[name] for name, path in found.items()}
    for name in ("images", "reference"):
        path = getattr(arguments, name)
        if path is not None and not path.exists():
            raise UserError(f"--{name} {path}: no such file or folder")
    return {name: str(path.absolute()) for name, path in found.items() if path is not None and path.exists()}


def prepare_folders(out: Path, work: Path, cache: str) -> None:
    """Make the folders, begin the logs anew, and have compiled code kept in the work folder."""
    out.mkdir(parents=True, exist_ok=True)
    (work / "reports").mkdir(parents=True, exist_ok=True)
    if cache and not (work / "cache").exists():
        with tarfile.open(cache) as packed:
            packed.extractall(work, filter="data")
    for variable, name in (("TRITON_CACHE_DIR", "triton"), ("TORCHINDUCTOR_CACHE_DIR", "inductor")):
        os.environ.setdefault(variable, str(work / "cache" / name))


def settings(arguments: Arguments, cuda: bool) -> dict[str, object]:
    """Return what to remember of the command: not where things lie on this machine."""
    kept = {
        name: value for name, value in asdict(arguments).items() if name in ("stage", "seconds", "sections")
    }
    return {**kept, "short": arguments.short or not cuda}


def run(runner: Runner, sections: Sequence[Section]) -> bool:
    """Run the sections; on a signal, end what runs and keep what there is. Return whether there was one."""

    def stop(number: int, frame: FrameType | None) -> None:
        raise KeyboardInterrupt

    former = signal.signal(signal.SIGTERM, stop)
    try:
        runner.run(sections)
    except KeyboardInterrupt:
        runner.stop()
        show("stopped; what was found by then is kept")
        return True
    finally:
        signal.signal(signal.SIGTERM, former)
    return False


def summary(findings: Findings, stage: str) -> Table:
    """Return a line for each section of a stage that is known."""
    device = findings.circumstances["facts"]["device"]
    table = Table("section", "state", "s", "result", title=f"{stage}, {device}")
    for section in STAGES[stage]:
        if entry := findings.sections.get(section.name):
            table.add_row(section.name, entry["state"], f"{entry['seconds']:.0f}", entry["headline"])
    return table


def next_commands(findings: Findings, arguments: Arguments) -> list[str]:
    """Say what to type next: for what the time did not reach, and for the next stage."""
    stage = arguments.stage
    states = {name: entry["state"] for name, entry in findings.sections.items() if entry["stage"] == stage}
    left = [name for name, state in states.items() if state in ("left out", "timed out", "stopped")]
    out = f" --out {arguments.out}" if arguments.out else ""
    lines = [f"left: {COMMAND} {stage}{out} --sections {' '.join(left)}"] if left else []
    if (findings.folder / TABLE).is_file():
        lines.append(
            f"what auto is to go by: python -m benchmarks.speed.auto_table {findings.folder / 'suite.json'}"
        )
    return [*lines, *([f"next: {COMMAND} {NEXT[stage]}{out}"] if stage in NEXT else [])]


def write_gains(findings: Findings) -> None:
    """Write the table that auto would go by, if an ablation was measured here."""
    reports = [entry.get("report") for entry in findings.sections.values() if not entry["settings"]["short"]]
    gains = [
        gain for report in reports if report and report["script"] == "ablation" for gain in gains_of(report)
    ]
    if gains:
        write_json(findings.folder / TABLE, [asdict(gain) for gain in gains])


def collect(arguments: Arguments) -> None:
    """Put the results of several calls together, and unpack their plots.

    Raises:
        UserError: a folder holds no results.
    """
    if arguments.out is None or not arguments.folders:
        raise UserError("collect needs --out RESULTS and the folders to put together")
    sections = read_json(arguments.out / "suite.json").get("sections", {})
    for folder in arguments.folders:
        found = read_json(folder / "suite.json").get("sections")
        if not found:
            raise UserError(f"{folder}: holds no suite.json with sections")
        sections = merged(sections, found)
    arguments.out.mkdir(parents=True, exist_ok=True)
    write_json(arguments.out / "suite.json", {"sections": sections})
    with (arguments.out / "suite.log").open("ab") as log:
        for folder in arguments.folders:
            for name in ("suite.log", "beside.log"):
                log.write((folder / name).read_bytes() if (folder / name).is_file() else b"")
            copy_plots(folder, arguments.out)
    show(f"{len(sections)} sections in {arguments.out}")


def copy_plots(folder: Path, out: Path) -> None:
    """Unpack a folder's plots into another one."""
    for plot in unpack_plots(folder):
        (out / plot.name).write_bytes(plot.read_bytes())


if __name__ == "__main__":
    start(lambda arguments: main(arguments, seconds_since_start()), Arguments)
