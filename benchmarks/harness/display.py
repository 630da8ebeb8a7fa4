"""Tables on the terminal, and bar plots that can be read in a README."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from benchmarks.harness.record import Label, Record, Report


@dataclass(frozen=True)
class Panel:
    """One group of bars below a title; `reference` draws a line there, such as a ceiling."""

    title: str
    bars: Sequence[Record]
    reference: tuple[str, float] | None = None


OTHERS = ("released", "the authors", "PyTorch", "compiled")
"""How the names begin of what is compared with; these bars are grey."""
GREYS = ("#9aa5b1", "#7b8794", "#616e7c")
COLOURS = ("#2f7d6b", "#2a9d8f", "#3d6fb6", "#6c5fb0", "#a34f7d", "#c0583f", "#d9a441", "#8a9a3b")


def bar_plot(path: Path, title: str, panels: Sequence[Panel]) -> None:
    """Draw horizontal bars, medians with their 20th and 80th percentile, one panel below the other."""
    panels = [panel for panel in panels if panel.bars]
    if not panels:
        return
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    heights = [0.8 + 0.42 * len(panel.bars) for panel in panels]
    figure, axes = pyplot.subplots(
        len(panels), 1, figsize=(9, 0.7 + sum(heights)), height_ratios=heights, squeeze=False
    )
    for panel, axis in zip(panels, axes[:, 0], strict=True):
        _draw(axis, panel)
    _head(figure, title)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=120)
    pyplot.close(figure)


def _head(figure: Any, title: str) -> None:
    """Write a heading, which takes as much room over a tall figure as over a small one."""
    height = figure.get_figheight()
    heading = figure.suptitle(title, fontsize=12, fontweight="bold", x=0.02, y=1 - 0.1 / height, ha="left")
    heading.set_in_layout(False)
    figure.tight_layout(rect=(0, 0, 1, 1 - 0.35 / height))


def _draw(axis: Any, panel: Panel) -> None:
    bars = list(panel.bars)
    places = range(len(bars))
    values = [bar.value for bar in bars]
    spread = [[bar.value - bar.p20 for bar in bars], [bar.p80 - bar.value for bar in bars]]
    colours = _colours([bar.name for bar in bars])
    axis.barh(places, values, xerr=spread, color=colours, height=0.7, ecolor="#333333", capsize=2)
    _label(axis, panel, bars)


def _colours(names: Sequence[str]) -> list[str]:
    others = [name for name in names if name.startswith(OTHERS)]
    own = [name for name in names if name not in others]
    grey = {name: GREYS[place % len(GREYS)] for place, name in enumerate(others)}
    return [grey.get(name) or COLOURS[own.index(name) % len(COLOURS)] for name in names]


def _label(axis: Any, panel: Panel, bars: Sequence[Record]) -> None:
    top = max([bar.p80 for bar in bars] + ([panel.reference[1]] if panel.reference else []))
    axis.set_yticks(range(len(bars)), [bar.name for bar in bars])
    axis.invert_yaxis()
    axis.set_xlim(0, top * 1.18 or 1)
    axis.set_title(panel.title, fontsize=10, loc="left")
    axis.set_xlabel(bars[0].unit, fontsize=9)
    for place, bar in enumerate(bars):
        axis.text(bar.p80 + top * 0.01, place, short(bar.value), va="center", fontsize=9)
    if panel.reference:
        name, value = panel.reference
        axis.axvline(value, color="#333333", linestyle=":", label=name)
        axis.legend(fontsize=8, loc="lower right")
    axis.spines[["top", "right"]].set_visible(False)


def short(value: float) -> str:
    """Write a number with about three digits."""
    if value >= 100:
        return f"{value:,.0f}"
    return f"{value:.3g}"


WIDTH = 130


def show(*what: Table | str) -> None:
    """Print tables and lines; into a file or pipe wide enough for all columns."""
    console = Console()
    if not console.is_terminal:
        console = Console(width=WIDTH)
    for item in what:
        console.print(item, highlight=False, markup=False, soft_wrap=isinstance(item, str))


def spread(entry: Record) -> str:
    """Write the 20th and 80th percentile."""
    return f"{short(entry.p20)} .. {short(entry.p80)}"


def beside(report: Report, entry: Record, unit: str) -> str:
    """Write another quantity of what a record is about: same name, same labels."""
    found = [other for other in report.select(unit, **entry.labels) if other.name == entry.name]
    return short(found[0].value) if found else "–"


def rates_table(report: Report, title: str, columns: Mapping[str, str], labels: Mapping[str, Label]) -> Table:
    """Return the images/s of what has these labels, with other units of it beside: by heading."""
    table = Table("step", "images/s", "20th..80th percentile", *columns, title=title)
    for entry in report.select("images/s", **labels):
        row = (beside(report, entry, unit) for unit in columns.values())
        table.add_row(entry.name, short(entry.value), spread(entry), *row)
    return table


def missing(report: Report, labels: Mapping[str, Label] | None = None) -> list[str]:
    """Return a line for each thing that could not be measured."""
    return [
        f"not measured: {lost['name']} ({lost['reason']})"
        for lost in report.missing
        if all(lost.get(key) == value for key, value in (labels or {}).items())
    ]
