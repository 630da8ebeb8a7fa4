"""`fastpeer compare`: what networks cost and how good they are, side by side."""

import platform
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from rich.console import Console
from tyro.conf import Positional, arg

from fastpeer.cli.arguments import parse
from fastpeer.cli.pytorch import import_pytorch
from fastpeer.config import check_at_least
from fastpeer.errors import UserError, printable
from fastpeer.printing import FigureTable, Row
from fastpeer.run_folder import RunFolder, newest_run
from fastpeer.table_formats import TableFormat, report_in

if TYPE_CHECKING:
    import torch

    from fastpeer.evaluation.opening import OpenedNetwork

BATCHES = (1, 128)
ATTACKS = {"clean": "clean", "pgd20": "PGD-20", "aa": "AA"}
"""Attacks of `fastpeer eval` that have a column, with its heading."""


@dataclass(frozen=True, kw_only=True)
class CompareArguments:
    """Put networks side by side: size, multiply-adds, latency, and the accuracies that eval found."""

    runs: Annotated[Positional[tuple[Path, ...]], arg(metavar="[RUN ...]")] = ()
    """Runs, checkpoints or weight files; a run brings its teachers and its peer along;
    default: the newest run in runs/."""
    checkpoint: str = "best"
    """Of runs: last, swa, best or best-swa."""
    model: str = ""
    """Network of weight files that do not tell: a shipped one, timm:NAME or module:Class."""
    classes: int = 0
    """Number of classes of weight files that do not tell."""
    size: int = 0
    """Side of the images of weight files that do not tell."""
    latency: bool = True
    """Time the networks on the CPU, and on the GPU if there is one."""
    rounds: int = 10
    """Timed calls of each network for each batch size, in alternation."""
    format: TableFormat = "text"
    """Of the table: text, csv, json, latex (booktabs) or markdown."""
    trust: bool = False
    """Import a class of your own that a run names; otherwise only what this line names. It runs code."""

    def __post_init__(self) -> None:
        check_at_least(1, self, "rounds")
        check_at_least(0, self, "classes", "size")


@dataclass(frozen=True)
class Compared:
    """A network of the table.

    Attributes:
        label: its name.
        opened: the network.
        evaluated: what stands behind `fastpeer eval` to measure it.
        accuracies: what that has found of it, by `ATTACKS`; empty where nothing.
    """

    label: str
    opened: "OpenedNetwork"
    evaluated: str
    accuracies: Mapping[str, str]


def compare_command(words: Sequence[str]) -> None:
    """Print costs and accuracies of what the words behind `fastpeer compare` name.

    Raises:
        UserError: whatever the user can fix.
    """
    arguments = parse(CompareArguments, words, "fastpeer compare")
    report = report_in(arguments.format, Console())
    notes: list[str] = []
    paths = arguments.runs or (newest_run().path,)
    sections = [_networks(path, arguments, notes) for path in dict.fromkeys(paths)]
    compared = [entry for section in sections for entry in section]
    times = dict(zip(map(id, compared), _times(compared, arguments), strict=True))
    headings = ("network", "parameters", "multiply-adds, M", "file, MB", *_time_headings(arguments))
    rows = [[_row(entry, times[id(entry)]) for entry in section] for section in sections]
    report.tables(_title(arguments), [FigureTable((*headings, *ATTACKS.values()), rows)])
    for note in (*notes, *_data_notes(compared), *_missing(compared)):
        report.note(note)
    report.end()


def _networks(path: Path, arguments: CompareArguments, notes: list[str]) -> list[Compared]:
    """Open a network, and behind it those that taught it; what is wrong with these becomes a note."""
    import_pytorch()
    from fastpeer.evaluation.opening import Wanted, label_of, open_network

    checkpoint, run = arguments.checkpoint, RunFolder(path) if RunFolder(path).exists else None
    file = Wanted(model=arguments.model, classes=arguments.classes, size=arguments.size)
    opened = open_network(path, Wanted(checkpoint=checkpoint) if run else file)
    evaluated = _evaluated(path, opened, checkpoint if run else "")
    found = [Compared(label_of(opened), opened, evaluated, _accuracies(opened))]
    for role, weights, wanted in _tutors(run, opened, checkpoint) if run else ():
        try:
            tutor = open_network(weights, wanted)
            label = f"{label_of(opened)}: its {role}"
            found.append(Compared(label, tutor, _evaluated(weights, tutor), _accuracies(tutor)))
        except UserError as error:
            notes.append(f"{path}: its {role} is left out: {error}")
    return found


def _evaluated(path: Path, opened: "OpenedNetwork", checkpoint: str = "") -> str:
    """Return the words by which `fastpeer eval` finds a network and its images."""
    if opened.target.run is None:
        return f"{path} --model {opened.name} --data DIR"
    return f"{path} --checkpoints {checkpoint}" if checkpoint else str(path)


def _tutors(run: RunFolder, student: "OpenedNetwork", checkpoint: str) -> Iterator[tuple[str, Path, Any]]:
    """Yield role, file and what to open of a run's teachers, then of its peer."""
    from fastpeer.evaluation.opening import Wanted

    height = student.size[0] if student.size else 0
    teachers = run.read_facts().get("teachers")
    for role, facts in (teachers if isinstance(teachers, Mapping) else {}).items():
        network, mean, std = (facts.get(name) for name in ("network", "mean", "std"))
        wanted = Wanted(
            model=str(network or ""), classes=student.classes, size=height,
            mean=tuple(mean or ()), std=tuple(std or ()),
        )  # fmt: skip
        yield printable(role).replace("_", " "), Path(str(facts.get("file", ""))), wanted
    peer = run.checkpoint("last" if checkpoint == "swa" else checkpoint) / "peer.safetensors"
    if peer.is_file():
        yield "peer", peer, Wanted()


def _times(compared: Sequence[Compared], arguments: CompareArguments) -> list[list[str]]:
    """Return the cells of each network's latencies: median and spread, by device and batch size."""
    if not arguments.latency:
        return [[] for _ in compared]
    import torch

    from fastpeer.device import memory_errors, placed
    from fastpeer.evaluation.costs import latencies

    cells: list[list[str]] = [[] for _ in compared]
    sizes = [_size(entry.opened) for entry in compared]
    for device in _devices():
        networks = [placed(entry.opened.network, device, torch.float32) for entry in compared]
        for batch in BATCHES:
            with memory_errors("the number of networks"):
                found = latencies(networks, sizes, batch, arguments.rounds, device)
            for row, latency in zip(cells, found, strict=True):
                row += [f"{latency.median:.2f}", f"{latency.spread:.2f}"]
    return cells


def _devices() -> "list[torch.device]":
    import torch

    return [torch.device(name) for name in ("cpu", *(["cuda"] if torch.cuda.is_available() else []))]


def _time_headings(arguments: CompareArguments) -> list[str]:
    devices = [device.type for device in _devices()] if arguments.latency else []
    return [
        f"{device} {what}, batch {batch}"
        for device in devices
        for batch in BATCHES
        for what in ("ms", "spread")
    ]


def _row(entry: Compared, times: Sequence[str]) -> Row:
    from fastpeer.evaluation.costs import multiply_adds, parameter_count

    opened = entry.opened
    costs = (
        f"{parameter_count(opened.network):,}",
        _millions(multiply_adds(opened.network, _size(opened))),
        _millions(opened.target.weights.stat().st_size),
    )
    return Row(entry.label, [*costs, *times, *entry.accuracies.values()])


def _size(opened: "OpenedNetwork") -> tuple[int, int]:
    if opened.size is None:
        raise UserError(f"{opened.target.weights} does not record the size of images: pass --size")
    return opened.size


def _accuracies(opened: "OpenedNetwork") -> dict[str, str]:
    """Return the accuracies that eval found last, by attack: on all test images, in the usual ball."""
    from fastpeer.evaluation.opening import results_of
    from fastpeer.evaluation.results import cell, is_usual

    found = {result.attack: cell(result) for result in results_of(opened) if is_usual(result)}
    return {attack: found.get(attack, "") for attack in ATTACKS}


def _title(arguments: CompareArguments) -> str:
    accuracies = "accuracies in % that eval found on all test images, L-infinity 8/255"
    if not arguments.latency:
        return f"multiply-adds of one image; {accuracies}"
    import torch

    calls = "one call" if arguments.rounds == 1 else f"{arguments.rounds} calls"
    threads = torch.get_num_threads()
    places = [f"{platform.machine()} CPU with {threads} thread{'s' if threads > 1 else ''}"]
    places += [torch.cuda.get_device_name(device) for device in _devices() if device.type == "cuda"]
    return (
        f"multiply-adds of one image; fp32 latency on {' and '.join(places)}: median of {calls} in"
        f" alternation, and the spread between quartiles; {accuracies}"
    )


def _data_notes(compared: Sequence[Compared]) -> Iterator[str]:
    """Yield that accuracies do not compare, where networks were trained on different data sets."""
    data: dict[tuple[str, object], str] = {}
    for entry in compared:
        facts = entry.opened.target.run.read_facts()["data"] if entry.opened.target.run else {}
        data.setdefault((entry.opened.data_name, facts.get("test_sha256")), entry.label)
    known = {key: label for key, label in data.items() if key[0]}
    if len(known) > 1:
        sets = "; ".join(f"{name} ({label})" for (name, _), label in known.items())
        yield f"different data sets or versions of them, so accuracies do not compare: {sets}"


def _missing(compared: Sequence[Compared]) -> Iterator[str]:
    for entry in compared:
        attacks = [attack for attack, text in entry.accuracies.items() if not text]
        if attacks:
            command = f"fastpeer eval {printable(entry.evaluated)} --attacks {','.join(attacks)}"
            yield f"{entry.label}: {', '.join(ATTACKS[attack] for attack in attacks)} not measured: {command}"


def _millions(count: int) -> str:
    """Return a count in millions; a small one is not rounded to nothing."""
    millions = count / 1e6
    return f"{millions:.2f}" if millions >= 0.01 else f"{millions:.1g}"
