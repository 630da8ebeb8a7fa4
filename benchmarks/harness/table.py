"""Tables on the terminal."""

from collections.abc import Mapping

from rich.console import Console
from rich.table import Table

from benchmarks.harness.plot import short
from benchmarks.harness.record import Label, Record, Report

WIDTH = 130


def show(*what: Table | str) -> None:
    """Print tables and lines; into a file or pipe wide enough for all columns."""
    console = Console()
    if not console.is_terminal:
        console = Console(width=WIDTH)
    for one in what:
        console.print(one, highlight=False, markup=False, soft_wrap=isinstance(one, str))


def spread(one: Record) -> str:
    """Write the 20th and 80th percentile."""
    return f"{short(one.p20)} .. {short(one.p80)}"


def beside(report: Report, one: Record, unit: str) -> str:
    """Write another quantity of what a record is about: same name, same labels."""
    found = [other for other in report.select(unit, **one.labels) if other.name == one.name]
    return short(found[0].value) if found else "–"


def rates_table(report: Report, title: str, columns: Mapping[str, str], labels: Mapping[str, Label]) -> Table:
    """Return the images/s of what has these labels, with other units of it beside: by heading."""
    table = Table("step", "images/s", "20th..80th percentile", *columns, title=title)
    for one in report.select("images/s", **labels):
        row = (beside(report, one, unit) for unit in columns.values())
        table.add_row(one.name, short(one.value), spread(one), *row)
    return table


def missing(report: Report, labels: Mapping[str, Label] | None = None) -> list[str]:
    """Return a line for each thing that could not be measured."""
    return [
        f"not measured: {lost['name']} ({lost['reason']})"
        for lost in report.missing
        if all(lost.get(key) == value for key, value in (labels or {}).items())
    ]
