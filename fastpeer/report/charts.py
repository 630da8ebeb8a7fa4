"""Charts: what they show, and how that is drawn as SVG that a page's style and script can work with."""

import json
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from html import escape

from fastpeer.report.records import Points

WIDTH, HEIGHT = 460, 290
LEFT, RIGHT, TOP, BOTTOM = 52, 12, 28, 40
SLANTED, MOST_SLANTED = 10, 20
"""Letters of a bar's name that have place when it is turned, and bars of which that is so."""
MOST_POINTS = 600
"""Of a curve; longer ones are thinned, as a screen has no more columns."""


@dataclass(frozen=True)
class Series:
    """One curve, or one group of points.

    Attributes:
        name: for the legend.
        points: pairs of values.
        colour: 0 to 7; None: by its place among the series.
        hollow: whether its points are circles.
    """

    name: str
    points: Points
    colour: int | None = None
    hollow: bool = False

    def style(self, number: int) -> str:
        """Return the classes that give a mark its colour, given the place among the series."""
        colour = number if self.colour is None else self.colour
        return f"s{colour % 8}{' hollow' if self.hollow else ''}"


@dataclass(frozen=True)
class Chart:
    """Curves, bars or points over two axes.

    Attributes:
        key: names its files.
        title: what is shown.
        x, y: names of the axes, with units.
        series: at most eight are told apart by colour.
        kind: lines, points, or bars (of which x is the place in `labels`).
        labels: of bars.
        note: what one has to know to read it.
        y_range: lower and upper end; None: as the values are.
    """

    key: str
    title: str
    x: str
    y: str
    series: Sequence[Series]
    kind: str = "lines"
    labels: Sequence[str] = ()
    note: str = ""
    y_range: tuple[float, float] | None = None

    @property
    def finite(self) -> "Chart":
        """The same without values that are NaN or infinite; their number is added to the note."""
        kept = [
            replace(one, points=[point for point in one.points if all(map(math.isfinite, point))])
            for one in self.series
        ]
        lost = sum(len(one.points) for one in self.series) - sum(len(one.points) for one in kept)
        note = f"{self.note} {lost} values are NaN or infinite and not drawn." if lost else self.note
        return replace(self, series=[one for one in kept if one.points], note=note.strip())


@dataclass(frozen=True)
class Heatmap:
    """Values over a square of two directions: `values[row][column]`, rows along y.

    Colours go from `low` to `high`, which other heatmaps may share; `extent` is where both axes end.
    """

    key: str
    title: str
    x: str
    y: str
    values: Sequence[Sequence[float]]
    extent: float
    low: float
    high: float
    note: str = ""

    def share(self, value: float) -> float:
        """Return where a value lies between faint (0) and strong (1); NaN and infinity are strong."""
        if not math.isfinite(value):
            return 1.0
        return min(max((value - self.low) / (self.high - self.low or 1), 0.0), 1.0)


def ticks(low: float, high: float, about: int = 5) -> list[float]:
    """Return round numbers between two ends: multiples of 1, 2 or 5 times a power of ten."""
    span = high - low
    if span <= 0:
        return [low]
    power = 10 ** math.floor(math.log10(span / about))
    step = next(power * factor for factor in (1, 2, 5, 10) if span / (power * factor) <= about)
    first = math.ceil(low / step - 1e-9)
    return [round(number * step, 12) for number in range(first, math.floor(high / step + 1e-9) + 1)]


@dataclass(frozen=True)
class Frame:
    """Where values lie in a chart's drawing."""

    x: tuple[float, float]
    y: tuple[float, float]

    def place(self, x: float, y: float) -> tuple[float, float]:
        """Return the pixel of a pair of values."""
        across = (x - self.x[0]) / (self.x[1] - self.x[0])
        up = (y - self.y[0]) / (self.y[1] - self.y[0])
        return (
            round(LEFT + across * (WIDTH - LEFT - RIGHT), 1),
            round(HEIGHT - BOTTOM - up * (HEIGHT - TOP - BOTTOM), 1),
        )


def frame_of(chart: Chart) -> Frame:
    """Return the ends of a chart's axes; bars begin at 0."""
    xs = [x for one in chart.series for x, _ in one.points]
    ys = [y for one in chart.series for _, y in one.points]
    if chart.kind == "bars":
        return Frame((-0.5, max(len(chart.labels), 1) - 0.5), chart.y_range or _widened(0.0, max(ys)))
    return Frame(_widened(min(xs), max(xs), 0), chart.y_range or _widened(min(ys), max(ys)))


def _widened(low: float, high: float, share: float = 0.05) -> tuple[float, float]:
    if low == high and share and low:
        # A constant, such as a learning rate, lies in the middle above (or below) 0.
        return min(0.0, 2 * low), max(0.0, 2 * low)
    if low == high:
        return low - 0.5, high + 0.5
    return (low - share * (high - low) if low else 0.0), high + share * (high - low)


def svg(chart: "Chart | Heatmap") -> str:
    """Return a chart as the markup of an `<svg>`; every text in it is escaped."""
    drawn = "".join(_heatmap(chart) if isinstance(chart, Heatmap) else _chart(chart))
    return (
        f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{escape(chart.title)}"'
        f' xmlns="http://www.w3.org/2000/svg">{drawn}</svg>'
    )


def _chart(chart: Chart) -> Iterator[str]:
    frame = frame_of(chart)
    yield from _axes(chart, frame)
    for number, one in enumerate(chart.series):
        yield f'<g class="series {one.style(number)}" data-series="{number}"{_hover(chart, frame, number)}>'
        yield from _bars(chart, frame, number) if chart.kind == "bars" else _marks(chart, frame, one)
        yield "</g>"


def _axes(chart: Chart, frame: Frame) -> Iterator[str]:
    if not chart.x and not chart.y and chart.kind == "points":
        return  # Of an embedding, whose axes mean nothing.
    for value in ticks(*frame.y):
        _, y = frame.place(frame.x[0], value)
        yield f'<line class="grid" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{y}" y2="{y}"/>'
        yield f'<text class="tick" x="{LEFT - 8}" y="{y + 4}" text-anchor="end">{_short(value)}</text>'
    for value, label in _x_labels(chart, frame):
        x, _ = frame.place(value, frame.y[0])
        yield f'<text class="tick" {_label_place(chart, x)}>{label}</text>'
    yield from _axis_names(chart.x, chart.y)


def _x_labels(chart: Chart, frame: Frame) -> Iterator[tuple[float, str]]:
    if chart.kind != "bars":
        places = ticks(*frame.x, 6)
        whole = [value for value in places if value == round(value)]
        # Of two epochs, no fifths.
        if chart.x == "epoch" and len(whole) > 1:
            places = whole
        yield from ((value, _short(value)) for value in places)
        return
    room = SLANTED if _is_slanted(chart) else _room(chart)
    for number, label in enumerate(chart.labels):
        yield number, escape(label if len(label) <= room else f"{label[: room - 1]}…")


def _room(chart: Chart) -> int:
    """Return how many letters have place below a bar."""
    return 60 // max(len(chart.labels), 1)


def _is_slanted(chart: Chart) -> bool:
    """Whether the names of bars are too long to stand below them, but have place when turned."""
    longest = max(map(len, chart.labels), default=0)
    return chart.kind == "bars" and longest > _room(chart) and len(chart.labels) <= MOST_SLANTED


def _label_place(chart: Chart, x: float) -> str:
    if not _is_slanted(chart):
        return f'x="{x}" y="{HEIGHT - BOTTOM + 17}" text-anchor="middle"'
    y = HEIGHT - BOTTOM + 13
    return f'x="{x + 4}" y="{y}" text-anchor="end" transform="rotate(-28 {x + 4} {y})"'


def _axis_names(x: str, y: str) -> Iterator[str]:
    yield f'<text class="axis" x="{WIDTH - RIGHT}" y="{HEIGHT - 6}" text-anchor="end">{escape(x)}</text>'
    yield f'<text class="axis" x="4" y="{TOP - 14}">{escape(y)}</text>'


def _short(value: float) -> str:
    return f"{value:.6g}".replace("-", "−")


def _thinned(points: Points) -> Points:
    step = math.ceil(len(points) / MOST_POINTS)
    return points if step <= 1 else [*points[:-1:step], points[-1]]


def _hover(chart: Chart, frame: Frame, number: int) -> str:
    """Return the points that the page's script looks for under the pointer, and their texts."""
    one = chart.series[number]
    places = []
    for x, y in _thinned(one.points):
        px, py = frame.place(_bar_x(chart, number, x), y)
        where = chart.labels[int(x)] if chart.kind == "bars" else f"{chart.x} {x:.4g}"
        places.append([px, py, f"{where}: {y:.5g}"])
    return f' data-name="{escape(one.name)}" data-points="{escape(json.dumps(places))}"'


def _marks(chart: Chart, frame: Frame, one: Series) -> Iterator[str]:
    places = [frame.place(*point) for point in _thinned(one.points)]
    if chart.kind == "lines" and len(places) > 1:
        yield f'<polyline points="{" ".join(f"{x},{y}" for x, y in places)}"/>'
    if chart.kind == "points" or len(places) <= 12:
        yield from (f'<circle cx="{x}" cy="{y}" r="3"/>' for x, y in places)


def _bar_x(chart: Chart, number: int, place: float) -> float:
    """Return the middle of a bar: those of one label stand side by side."""
    if chart.kind != "bars":
        return place
    return place + 0.8 * ((number + 0.5) / len(chart.series) - 0.5)


def _bars(chart: Chart, frame: Frame, number: int) -> Iterator[str]:
    width = 0.8 * (WIDTH - LEFT - RIGHT) / max(len(chart.labels), 1) / len(chart.series)
    _, floor = frame.place(0, frame.y[0])
    for place, value in chart.series[number].points:
        x, y = frame.place(_bar_x(chart, number, place), value)
        size = f'width="{max(width - 1, 0.5):.1f}" height="{max(floor - y, 0):.1f}"'
        yield f'<rect x="{x - width / 2:.1f}" y="{y}" {size}/>'


def _heatmap(chart: Heatmap) -> Iterator[str]:
    count = len(chart.values)
    side = (HEIGHT - TOP - BOTTOM) / count
    left = (WIDTH - side * count) / 2
    for row, values in enumerate(chart.values):
        for column, value in enumerate(values):
            x, y = left + column * side, TOP + (count - 1 - row) * side
            where = f'x="{x:.1f}" y="{y:.1f}" width="{side + 0.4:.1f}" height="{side + 0.4:.1f}"'
            style, text = f"--share:{chart.share(value):.3f}", f"loss {value:.4g}"
            yield f'<rect class="cell" {where} style="{style}"><title>{text}</title></rect>'
    yield from _axis_names(f"{chart.x}, ±{chart.extent:g}", f"{chart.y}, ±{chart.extent:g}")
    yield from _colour_key(chart)


def _colour_key(chart: Heatmap) -> Iterator[str]:
    """Draw the colours from strong to faint at the right, with the losses that they stand for."""
    shades, left, side = 12, WIDTH - RIGHT - 76, (HEIGHT - TOP - BOTTOM) / 2 / 12
    for number in range(shades):
        share, y = 1 - number / (shades - 1), TOP + number * side
        where = f'x="{left}" y="{y:.1f}" width="12" height="{side + 0.4:.1f}"'
        yield f'<rect class="cell key" {where} style="--share:{share:.3f}"/>'
    for value, y in ((chart.high, TOP + 10), (chart.low, TOP + shades * side)):
        yield f'<text class="tick" x="{left + 18}" y="{y:.1f}">{value:.3g}</text>'
