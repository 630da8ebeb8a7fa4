"""Tables and lines for whoever reads them: as wide as the terminal allows, and whole in a pipe or file."""

from collections.abc import Sequence
from dataclasses import dataclass
from textwrap import fill
from typing import Any

from rich.box import HEAVY_HEAD
from rich.console import Console
from rich.measure import Measurement
from rich.table import Table
from rich.text import Text

from fastpeer.errors import printable

UNLIMITED = 100_000
"""Columns of a pipe or file: more than any table has."""


@dataclass(frozen=True)
class Row:
    """A named row of a table; an empty text stands for a figure that there is not."""

    name: str
    figures: Sequence[str]
    style: str = ""


@dataclass(frozen=True)
class FigureTable:
    """Rows of figures in sections.

    Attributes:
        headings: of the names, then of each figure.
        sections: rows, between lines.
        title: printed above, behind an empty line; may be empty.
    """

    headings: Sequence[str]
    sections: Sequence[Sequence[Row]]
    title: str = ""


def print_line(console: Console, text: str, style: str = "") -> None:
    """Print a text as it is: broken between words on a terminal, in one line elsewhere."""
    console.print(
        printable(text), style=style, markup=False, highlight=False, soft_wrap=not console.is_terminal
    )


def print_warning(console: Console, text: str) -> None:
    """Print what belongs to a result: where the console is quiet, to standard error."""
    print_line(Console(stderr=True) if console.quiet else console, text)


def print_tables(console: Console, tables: Sequence[FigureTable], boxed: bool = True) -> None:
    """Print tables, several of them with columns of the same width; no name and no figure is cut.

    Where a terminal is too narrow for one of them, headings are broken between words; where it is too narrow
    for that too, each figure has a line of its own below its row's name.

    Args:
        console: where to print.
        tables: with the same number of columns.
        boxed: whether to draw lines.
    """
    tables = [_printable(table) for table in tables]
    drawn = _all_drawn(tables, boxed)
    if not console.is_terminal:
        console.width = max(console.width, *(_measured(console, table).maximum for table in drawn), 1)
    elif not _fit(console, drawn):
        drawn = _all_drawn([_with_broken_headings(table) for table in tables], boxed)
    fits = _fit(console, drawn)
    for table, whole in zip(tables, drawn, strict=True):
        if table.title:
            console.print()
            print_line(console, table.title, "bold")
        if fits:
            console.print(whole)
        else:
            _print_figure_by_figure(console, table)


def _printable(table: FigureTable) -> FigureTable:
    """Return a table without control characters: its names and figures may come from anyone's files."""
    sections = [
        [Row(printable(row.name), [printable(figure) for figure in row.figures], row.style) for row in rows]
        for rows in table.sections
    ]
    return FigureTable([printable(heading) for heading in table.headings], sections, table.title)


def _with_broken_headings(table: FigureTable) -> FigureTable:
    """Return a table whose headings are broken between words, to no less than the width of their figures."""
    name, *columns = _columns(table)
    headings = [name[0]]
    for heading, *figures in columns:
        width = max(map(len, [*figures, *heading.split()]), default=1)
        headings.append(fill(heading, max(width, 1), break_long_words=False, break_on_hyphens=False))
    return FigureTable(headings, table.sections, table.title)


def _fit(console: Console, tables: Sequence[Table]) -> bool:
    return all(_measured(console, table).minimum <= console.width for table in tables)


def _all_drawn(tables: Sequence[FigureTable], boxed: bool) -> list[Table]:
    name_width, *widths = _widths(tables)
    return [_drawn(table, [name_width if len(tables) > 1 else 1, *widths], boxed) for table in tables]


def _widths(tables: Sequence[FigureTable]) -> list[int]:
    columns = [[*heading.splitlines(), *cells] for table in tables for heading, *cells in _columns(table)]
    count = len(tables[0].headings)
    return [max(len(cell) for column in columns[number::count] for cell in column) for number in range(count)]


def _columns(table: FigureTable) -> list[tuple[str, ...]]:
    rows = [(row.name, *row.figures) for section in table.sections for row in section]
    return list(zip(table.headings, *rows, strict=True))


def _drawn(table: FigureTable, widths: Sequence[int], boxed: bool) -> Table:
    drawn = Table(box=HEAVY_HEAD if boxed else None, pad_edge=boxed)
    for number, heading in enumerate(table.headings):
        # Names may be broken between words, figures not at all (rich breaks even those, but for min_width).
        settings: dict[str, Any] = {"justify": "right", "no_wrap": True} if number else {"overflow": "fold"}
        drawn.add_column(heading, min_width=widths[number], **settings)
    for section in table.sections:
        drawn.add_section()
        for row in section:
            drawn.add_row(*(Text(cell) for cell in (row.name, *row.figures)), style=row.style)
    return drawn


def _measured(console: Console, table: Table) -> Measurement:
    """Return the least width in which nothing is cut, and the width in which no name is broken."""
    return Measurement.get(console, console.options.update(max_width=UNLIMITED), table)


def _print_figure_by_figure(console: Console, table: FigureTable) -> None:
    _, *columns = _columns(table)
    widest_heading = max(len(heading) for heading, *_ in columns)
    widest_figure = max(len(figure) for _, *figures in columns for figure in figures)
    for number, section in enumerate(table.sections):
        if number:
            console.print()
        for row in section:
            print_line(console, row.name, row.style)
            for heading, figure in zip(table.headings[1:], row.figures, strict=True):
                if figure:
                    line = f"  {heading:<{widest_heading}}  {figure:>{widest_figure}}"
                    console.print(Text(line, row.style), soft_wrap=True)


def at_the_end_of_every(epochs: int) -> str:
    """Return when something happens that is done every so many epochs, and at the end of a training."""
    return (
        "at each epoch's end" if epochs == 1 else f"at the end of every {epochs} epochs, and of the last one"
    )


def format_seconds(seconds: float) -> str:
    """Write a duration in the unit that suits it: ms, s, min or h."""
    if seconds < 1:
        return f"{1000 * seconds:.0f} ms"
    if seconds < 90:
        return f"{seconds:.1f} s"
    if seconds < 5400:
        return f"{seconds / 60:.1f} min"
    return f"{seconds / 3600:.1f} h"
