"""The charts of the page as PNG and SVG files, by matplotlib."""

from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fastpeer.errors import UserError
from fastpeer.report.charts import Chart, Heatmap

if TYPE_CHECKING:
    from matplotlib.axes import Axes

LONGEST = 40
"""Letters of a name in a picture, which cannot be broken as on a page."""


def check_installed() -> None:
    """Make sure that matplotlib is there.

    Raises:
        UserError: it is not.
    """
    try:
        import matplotlib  # noqa: F401
    except ImportError:
        raise UserError(
            "PNG and SVG files need matplotlib: pip install 'fastpeer[report]', or pass --no-figures"
        ) from None


def write_images(charts: Iterable[tuple[str, "Chart | Heatmap"]], folder: Path) -> int:
    """Write each chart as NAME.png and NAME.svg, and return how many there were.

    Args:
        charts: with their names.
        folder: created if it is missing.
    """
    import matplotlib as mpl
    from matplotlib.figure import Figure

    folder.mkdir(exist_ok=True)
    count = 0
    # Texts as they are: a dollar sign in a class's name is no formula.
    with mpl.rc_context({"text.parse_math": False, "svg.hashsalt": "fastpeer", "font.size": 9}):
        for name, chart in charts:
            figure = Figure(figsize=(5, 3.2), layout="constrained")
            _draw(figure.subplots(), chart)
            for suffix in ("png", "svg"):
                metadata: dict[str, Any] = {"Date": None} if suffix == "svg" else {}
                figure.savefig(folder / f"{name}.{suffix}", dpi=200, metadata=metadata)
            count += 1
    return count


def _draw(axes: "Axes", chart: "Chart | Heatmap") -> None:
    axes.set(title=chart.title, xlabel=chart.x, ylabel=chart.y)
    if isinstance(chart, Heatmap):
        extent = (-chart.extent, chart.extent, -chart.extent, chart.extent)
        colours: dict[str, Any] = {"cmap": "Blues", "vmin": chart.low, "vmax": chart.high}
        image = axes.imshow(chart.values, origin="lower", extent=extent, **colours)
        assert axes.figure is not None
        axes.figure.colorbar(image, ax=axes, label="loss")
        return
    axes.spines[["top", "right"]].set_visible(False)
    for number, one in enumerate(chart.series):
        _draw_series(axes, chart, number, _brief(one.name))
    if chart.kind == "bars":
        axes.set_xticks(range(len(chart.labels)), [_brief(label, 12) for label in chart.labels], rotation=45)
    if chart.y_range:
        axes.set_ylim(*chart.y_range)
    if len(chart.series) > 1:
        axes.legend(frameon=False, fontsize=7)


def _draw_series(axes: "Axes", chart: Chart, number: int, name: str) -> None:
    one = chart.series[number]
    xs, ys = zip(*one.points, strict=True)
    if chart.kind == "bars":
        width = 0.8 / len(chart.series)
        axes.bar([x + width * (number + 0.5) - 0.4 for x in xs], ys, width, label=name)
    elif chart.kind == "points":
        colour = f"C{number if one.colour is None else one.colour}"
        axes.scatter(xs, ys, s=12, label=name, facecolors="none" if one.hollow else colour, edgecolors=colour)
    else:
        axes.plot(xs, ys, marker="o" if len(xs) <= 12 else "", markersize=3, label=name)


def _brief(text: str, longest: int = LONGEST) -> str:
    return text if len(text) <= longest else f"{text[: longest - 1]}…"
