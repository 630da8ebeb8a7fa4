"""What a training ends with: last and best student, plain and averaged, side by side."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from rich.console import Console

from fastpeer.printing import FigureTable, Row, print_line, print_tables

if TYPE_CHECKING:
    from fastpeer.training.selection import Selection

NAMES = {
    "last": "last",
    "best": "best",
    "swa": "last, averaged (SWA)",
    "best-swa": "best, averaged (SWA)",
}


def print_summary(
    summary: Mapping[str, Mapping[str, Any]], selection: "Selection", console: Console, unmeasured: int = 0
) -> None:
    """Print the accuracies by which epochs were selected, and on which images.

    Args:
        summary: epoch and accuracies of each student in `NAMES` that there is.
        selection: what it was that selected.
        console: where to.
        unmeasured: steps that were taken after the last evaluation.
    """
    if not summary:
        print_line(console, "no epoch was completed, so nothing was evaluated")
        return
    attacks = [name for name in summary["last"] if name != "epoch"]
    rows = [_row(name, summary[key], attacks) for key, name in NAMES.items() if key in summary]
    print_line(console, f"student's {selection.describe()}; best by {selection.metric}")
    print_tables(console, [FigureTable(("student", "epoch", *attacks), [rows])])
    if unmeasured:
        epoch = summary["last"]["epoch"]
        print_line(
            console,
            f"last is as it was after epoch {epoch}: checkpoints/last has taken {unmeasured} more steps, not"
            " evaluated here",
        )


def _row(name: str, entry: Mapping[str, Any], attacks: Sequence[str]) -> Row:
    return Row(name, (str(entry["epoch"]), *(f"{entry[attack]:.2f}" for attack in attacks)))
