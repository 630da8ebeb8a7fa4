"""What a command found, in the form that is asked for: text to read, CSV, JSON, LaTeX or Markdown."""

import csv
import io
import json
import re
from collections.abc import Callable, Sequence
from typing import Any, Literal, Protocol

from rich.console import Console

from fastpeer.errors import printable
from fastpeer.printing import FigureTable, Row, print_line, print_tables

TableFormat = Literal["text", "csv", "json", "latex", "markdown"]


class Report(Protocol):
    """Takes tables and notes, and writes them in one format."""

    def tables(self, title: str, tables: Sequence[FigureTable], boxed: bool = True) -> None:
        """Take tables with the same number of columns; the title, or theirs, says what the figures are."""

    def note(self, text: str) -> None:
        """Take a line on what was taken before."""

    def end(self) -> None:
        """Write what is left to be written."""


def report_in(form: TableFormat, console: Console) -> Report:
    """Return the report that writes in a format to a console's stream.

    Of CSV, which has no room for them, titles stand in a column and notes go to standard error.
    """
    kinds: dict[str, Callable[[Console], Report]] = {
        "text": _Text, "csv": _Csv, "json": _Json, "latex": _Latex, "markdown": _Markdown,
    }  # fmt: skip
    return kinds[form](console)


class _Text:
    def __init__(self, console: Console) -> None:
        self._console = console

    def tables(self, title: str, tables: Sequence[FigureTable], boxed: bool = True) -> None:
        if title:
            print_line(self._console, title)
        print_tables(self._console, tables, boxed)

    def note(self, text: str) -> None:
        print_line(self._console, text)

    def end(self) -> None:
        pass


class _Csv:
    def __init__(self, console: Console) -> None:
        self._file = console.file
        self._headings: tuple[str, ...] = ()

    def tables(self, title: str, tables: Sequence[FigureTable], boxed: bool = True) -> None:
        for table in tables:
            headings = ("table", *map(printable, table.headings))
            lines = [headings] if headings != self._headings else []
            self._file.write("\n" if lines and self._headings else "")
            self._headings = headings
            rows = [(_whole_title(title, table), row.name, *map(_plain, row.figures)) for row in _rows(table)]
            self._file.write(_csv([*lines, *rows]))

    def note(self, text: str) -> None:
        print_line(Console(stderr=True), text)

    def end(self) -> None:
        pass


class _Json:
    def __init__(self, console: Console) -> None:
        self._file = console.file
        self._tables: list[dict[str, Any]] = []
        self._notes: list[str] = []

    def tables(self, title: str, tables: Sequence[FigureTable], boxed: bool = True) -> None:
        for table in tables:
            rows = [
                dict(zip(table.headings, (printable(row.name), *map(_number, row.figures)), strict=True))
                for row in _rows(table)
            ]
            self._tables.append({"title": _whole_title(title, table), "rows": rows})

    def note(self, text: str) -> None:
        self._notes.append(printable(text))

    def end(self) -> None:
        text = json.dumps({"tables": self._tables, "notes": self._notes}, indent=1, ensure_ascii=False)
        self._file.write(f"{text}\n")


class _Latex:
    """Tables for the package booktabs; titles and notes are comments."""

    def __init__(self, console: Console) -> None:
        self._file = console.file

    def tables(self, title: str, tables: Sequence[FigureTable], boxed: bool = True) -> None:
        for table in tables:
            lines = [rf"\begin{{tabular}}{{l{'r' * (len(table.headings) - 1)}}}", r"\toprule"]
            lines += [_latex_row(table.headings)]
            for section in table.sections:
                lines += [r"\midrule", *(_latex_row((row.name, *row.figures)) for row in section)]
            self.note(_whole_title(title, table))
            self._file.write("\n".join([*lines, r"\bottomrule", r"\end{tabular}", ""]))

    def note(self, text: str) -> None:
        self._file.write(f"% {printable(text)}\n")

    def end(self) -> None:
        pass


class _Markdown:
    def __init__(self, console: Console) -> None:
        self._file = console.file

    def tables(self, title: str, tables: Sequence[FigureTable], boxed: bool = True) -> None:
        for table in tables:
            rule = ("---", *("---:" for _ in table.headings[1:]))
            head, *rows = [table.headings, *((row.name, *row.figures) for row in _rows(table))]
            cells = [map(markdown, head), rule, *(map(markdown, row) for row in rows)]
            self.note(_whole_title(title, table))
            self._file.write("".join(f"| {' | '.join(row)} |\n" for row in cells) + "\n")

    def note(self, text: str) -> None:
        self._file.write(f"{markdown(text)}\n\n")

    def end(self) -> None:
        pass


def _rows(table: FigureTable) -> list[Row]:
    return [row for section in table.sections for row in section]


def _whole_title(title: str, table: FigureTable) -> str:
    return printable(": ".join(filter(None, (title, table.title))))


def _csv(rows: Sequence[Sequence[str]]) -> str:
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows([list(map(printable, row)) for row in rows])
    return text.getvalue()


def _plain(figure: str) -> str:
    """Return a number without the commas between its thousands, another text as it is."""
    return figure.replace(",", "") if re.fullmatch(r"\d{1,3}(,\d{3})+(\.\d+)?", figure) else figure


def _number(figure: str) -> float | int | str | None:
    """Return a figure as a number where it is nothing but one; None for one that there is not."""
    plain = _plain(figure)
    if re.fullmatch(r"-?\d{1,15}", plain):
        return int(plain)
    return float(plain) if re.fullmatch(r"-?\d+\.\d+", plain) else (plain or None)


def _latex_row(cells: Sequence[str]) -> str:
    return " & ".join(map(_latex, cells)) + r" \\"


def _latex(text: str) -> str:
    spelt = {"\\": r"\textbackslash{}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}"}
    marked = {letter: f"\\{letter}" for letter in "&%$#_{}"}
    return "".join({**marked, **spelt}.get(letter, letter) for letter in printable(text))


def markdown(text: str) -> str:
    """Return a text as Markdown shows it: what would mark it up is escaped."""
    return re.sub(r"([\\|`*_<>\[\]])", r"\\\1", printable(text))
