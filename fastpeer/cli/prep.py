"""`fastpeer prep`: turn a data set into .beton files."""

from collections.abc import Sequence

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeRemainingColumn

from fastpeer.cli.arguments import parse
from fastpeer.data_prep import PrepOptions, PrepSummary, prepare
from fastpeer.printing import print_line, print_warning
from fastpeer.training.signals import ending_on_signals


def prep_command(words: Sequence[str]) -> None:
    """Prepare a data set as the words behind `fastpeer prep` tell.

    Raises:
        UserError: whatever the user can fix.
    """
    options = parse(PrepOptions, words, "fastpeer prep")
    console = Console(quiet=options.quiet)
    with ending_on_signals(), _Bars(console) as bars:
        summary = prepare(options, bars.show)
    _print(summary, console)


def _print(summary: PrepSummary, console: Console) -> None:
    # Imported here: the sources bring in Pillow, which --help need not wait for.
    from fastpeer.data_prep.sources.official import OFFICIAL_PIXELS

    print_line(console, _closing_line(summary))
    if summary.pixels:
        (print_line if summary.pixels == OFFICIAL_PIXELS else print_warning)(console, summary.pixels)
    for note in summary.notes:
        print_warning(console, note)


def _closing_line(summary: PrepSummary) -> str:
    counts = ", ".join(f"{count} {split}" for split, count in summary.counts.items())
    size = f"{summary.size[0]}x{summary.size[1]}" if summary.size else "many sizes, as JPEG,"
    return (
        f"{summary.out}: {counts} images of {size} in {summary.classes} classes,"
        f" {summary.bytes / 1e6:.0f} MB, {summary.seconds:.1f} s"
    )


class _Bars(Progress):
    """A bar for each stage of the preparation."""

    def __init__(self, console: Console) -> None:
        columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
        # Bars are for a terminal: a file gets the closing line alone.
        super().__init__(*columns, console=console, transient=True, disable=not console.is_terminal)
        self._stages: dict[str, TaskID] = {}

    def show(self, stage: str, done: int, total: int) -> None:
        """Move a stage's bar."""
        if stage not in self._stages:
            self._stages[stage] = self.add_task(stage)
        self.update(self._stages[stage], completed=done, total=total)
