"""What a training ends with: last and best student, plain and averaged, side by side."""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.table import Table

if TYPE_CHECKING:
    from fastpeer.training.selection import Selection

NAMES = {
    "last": "last",
    "best": "best",
    "swa": "last, averaged (SWA)",
    "best-swa": "best, averaged (SWA)",
}


def print_summary(summary: Mapping[str, Mapping[str, Any]], selection: "Selection", console: Console) -> None:
    """Print the accuracies by which epochs were selected, and on which images.

    Args:
        summary: epoch and accuracies of each student in `NAMES` that there is.
        selection: what it was that selected.
        console: where to.
    """
    if not summary:
        console.print("no epoch was completed, so nothing was evaluated")
        return
    attacks = [name for name in summary["last"] if name != "epoch"]
    table = Table("student")
    for heading in ("epoch", *attacks):
        table.add_column(heading, justify="right")
    for key, name in NAMES.items():
        if key in summary:
            entry = summary[key]
            table.add_row(name, str(entry["epoch"]), *(f"{entry[attack]:.2f}" for attack in attacks))
    console.print(f"student's {selection.describe()}; best by {selection.metric}", highlight=False)
    console.print(table)
