"""`fastpeer report`: a page about runs that a person can look at, and its charts as files."""

import logging
import re
import shutil
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from rich.console import Console
from tyro.conf import Positional, arg

from fastpeer.cli.arguments import parse
from fastpeer.cli.log_lines import log_to
from fastpeer.cli.pytorch import import_pytorch
from fastpeer.config import check_at_least
from fastpeer.errors import UserError, printable
from fastpeer.files import check_room, write_atomically
from fastpeer.printing import print_line, print_warning
from fastpeer.run_folder import RunFolder, newest_run

if TYPE_CHECKING:
    from fastpeer.report.build import Chapter
    from fastpeer.report.charts import Chart, Heatmap
    from fastpeer.report.measurements import Arrays
    from fastpeer.report.records import RunReport
    from fastpeer.report.sections import Network

PAGE, FIGURES = "report.html", "figures"


@dataclass(frozen=True, kw_only=True)
class ReportArguments:
    """Make one page about runs: what was trained, curves, attacked images, the loss around the weights."""

    runs: Annotated[Positional[tuple[Path, ...]], arg(metavar="[RUN ...]")] = ()
    """Folders of runs; default: the newest run in runs/."""
    out: Annotated[Path | None, arg(metavar="DIR")] = None
    """Where report.html and figures/ go; default: RUN/report for one run, else report."""
    checkpoint: str = ""
    """Which student is attacked: last, swa, best or best-swa; default: best, or what there is."""
    images: int = 128
    """Test images that are attacked, evenly spread; each chart says how many it has."""
    network: bool = True
    """Attack the networks; --no-network makes the page of what the runs' files hold alone."""
    figures: bool = True
    """Write the charts as PNG and SVG files too, by matplotlib."""
    trust: bool = False
    """Import the classes and methods of your own that runs name; it runs code."""
    device: str = "auto"
    """auto, cpu, cuda or cuda:N."""
    quiet: bool = False
    """Print nothing but warnings and errors."""

    def __post_init__(self) -> None:
        check_at_least(16, self, "images")


def report_command(words: Sequence[str]) -> None:
    """Write the page about the runs that the words behind `fastpeer report` name.

    Raises:
        UserError: whatever the user can fix.
    """
    arguments = parse(ReportArguments, words, "fastpeer report")
    paths = list(dict.fromkeys(arguments.runs)) or [newest_run().path]
    out = arguments.out or (paths[0] / "report" if len(paths) == 1 else Path("report"))
    _refuse_foreign(out)
    _refuse_unwritable(out)
    # Imported here: they need a second that --help and errors in the words need not wait for.
    import_pytorch()
    from fastpeer.evaluation.targets import check_checkpoint_name
    from fastpeer.report.image_files import check_installed, write_images
    from fastpeer.report.records import read_run
    from fastpeer.training.signals import interruptible

    if arguments.figures:
        check_installed()
    if arguments.checkpoint:
        check_checkpoint_name(arguments.checkpoint)
    reports = [read_run(RunFolder(path), name) for path, name in zip(paths, _names(paths), strict=True)]
    console = Console(quiet=arguments.quiet)
    with log_to(console, logging.WARNING), interruptible():
        chapters = _chapters(reports, arguments, console)
        _write_page(chapters, out)
        count = write_images(_charts(chapters), out / FIGURES) if arguments.figures else 0
    files = f", {count} charts as PNG and SVG in {out / FIGURES}/" if count else ""
    print_line(console, f"{out / PAGE}{files}")


def _names(paths: Sequence[Path]) -> list[str]:
    """Return the folders' names, or whole paths where names are not unique."""
    names = [path.resolve().name for path in paths]
    return [name if names.count(name) == 1 else str(path) for name, path in zip(names, paths, strict=True)]


def _refuse_foreign(out: Path) -> None:
    """Refuse a folder that holds anything that no report wrote.

    Raises:
        UserError: it does, or is no folder.
    """
    if out.exists() and not out.is_dir():
        raise UserError(f"--out must be a folder, got the file {out}")
    names = sorted(entry.name for entry in out.iterdir()) if out.exists() else []
    foreign = [name for name in names if not re.fullmatch(r"report\.html|figures|\.?measured-.*", name)]
    if foreign:
        raise UserError(f"{out} holds {printable(foreign[0])}, which no report wrote: name another --out")


def _refuse_unwritable(out: Path) -> None:
    """Refuse a folder in which nothing can be written: before minutes of attacks, not after them."""
    nearest = next(path for path in (out.absolute(), *out.absolute().parents) if path.is_dir())
    check_room(nearest, out, "name another --out")


def _chapters(
    reports: "Sequence[RunReport]", arguments: ReportArguments, console: Console
) -> "list[Chapter]":
    from fastpeer.report.build import Chapter
    from fastpeer.report.comparison import comparison
    from fastpeer.report.sections import sections

    measured, complaints = _measured(reports, arguments, console)
    networks = _networks(reports, measured)
    chapters = [
        Chapter(one.name, list(sections(one, networks.get(one.name), complaints.get(one.name, ""))), one)
        for one in reports
    ]
    if len(reports) > 1:
        chapters.insert(0, Chapter("Comparison of runs", list(comparison(reports, networks))))
    return chapters


def _networks(reports: "Sequence[RunReport]", measured: "Mapping[str, Arrays]") -> "Mapping[str, Network]":
    """Return what is known of the networks that were measured, by the runs' names."""
    if not measured:
        return {}
    from fastpeer.report.figures import loss_scale
    from fastpeer.report.sections import Network
    from fastpeer.report.stored import stored_verdicts

    scale = loss_scale(measured.values())
    found = {one.name: (one, measured[one.name]) for one in reports if one.name in measured}
    return {
        name: Network(arrays, stored_verdicts(one, str(arrays["weights"][1])), scale)
        for name, (one, arrays) in found.items()
    }


def _measured(
    reports: "Sequence[RunReport]", arguments: ReportArguments, console: Console
) -> "tuple[Mapping[str, Arrays], Mapping[str, str]]":
    """Return what was measured of the runs' networks, and why nothing could be, by the runs' names."""
    if not arguments.network:
        return {}, {one.name: "not attacked, as --no-network asked" for one in reports}
    from fastpeer.device import choose_device
    from fastpeer.report.measurements import Scope, measure

    device = choose_device(arguments.device)
    scope = Scope(arguments.checkpoint, arguments.images)
    measured: dict[str, Arrays] = {}
    complaints: dict[str, str] = {}
    for one in reports:
        try:
            measured[one.name] = measure(one, scope, device, _progress(console, one.name))
        except UserError as error:
            # The page is made of what there is, and says what it lacks.
            if error.exit_code != UserError.exit_code:
                raise
            complaints[one.name] = str(error)
            print_warning(console, f"{one.name}: the network is left out ({error})")
    return measured, complaints


def _progress(console: Console, name: str) -> Callable[[str], None]:
    return lambda what: print_line(console, f"{name}: {what} …")


def _charts(chapters: "Sequence[Chapter]") -> "Iterator[tuple[str, Chart | Heatmap]]":
    """Yield each chart with the name of its file, which begins with the run's where there are several."""
    used: set[str] = set()
    for number, chapter in enumerate(chapters):
        name = re.sub(r"[^A-Za-z0-9._-]+", "-", chapter.name)[:60]
        prefix = f"{number}-{name}-" if len(chapters) > 1 else ""
        for chart in (chart for section in chapter.sections for chart in section.charts):
            file = prefix + re.sub(r"[^A-Za-z0-9._-]+", "-", chart.key)[:80]
            # Runs of several data sets have each of their charts more than once.
            while file in used:
                file += "-other"
            used.add(file)
            yield file, chart


def _write_page(chapters: "Sequence[Chapter]", out: Path) -> None:
    from fastpeer import __version__
    from fastpeer.report.build import page

    text = page(chapters, f"fastpeer {__version__}, {time.strftime('%Y-%m-%d %H:%M')}")
    try:
        out.mkdir(parents=True, exist_ok=True)
        # Those of a former report may be of charts that this one has not.
        shutil.rmtree(out / FIGURES, ignore_errors=True)
    except OSError as error:
        raise UserError(f"{out}: cannot be written ({error.strerror})") from None
    write_atomically(out / PAGE, text)
