"""Charts as SVG: where values lie, what is escaped, and what is not finite."""

from __future__ import annotations

import json
from xml.etree import ElementTree

import pytest

from fastpeer.report.charts import MOST_POINTS, Chart, Heatmap, Series, frame_of, svg, ticks

SCRIPT = '<script>alert("&")</script>'


def elements(markup: str, tag: str) -> list[ElementTree.Element]:
    return list(ElementTree.fromstring(markup).iter(f"{{http://www.w3.org/2000/svg}}{tag}"))


@pytest.mark.parametrize(
    ("low", "high", "expected"),
    [
        (0, 100, [0, 20, 40, 60, 80, 100]),
        (0.013, 0.1, [0.02, 0.04, 0.06, 0.08, 0.1]),
        (-0.75, 0.75, [-0.5, 0, 0.5]),
    ],
)
def test_ticks_are_round(low: float, high: float, expected: list[float]) -> None:
    assert ticks(low, high) == expected


def test_texts_are_escaped_and_points_lie_in_proportion() -> None:
    points = [(0.0, 0.0), (5.0, 50.0), (10.0, 100.0)]
    chart = Chart("key", SCRIPT, SCRIPT, SCRIPT, [Series(SCRIPT, points)], y_range=(0.0, 100.0))
    markup = svg(chart)
    assert "<script" not in markup
    (line,) = elements(markup, "polyline")
    (x0, y0), (x1, y1), (x2, y2) = (map(float, pair.split(",")) for pair in line.attrib["points"].split())
    assert x1 - x0 == pytest.approx(x2 - x1, abs=0.2)
    assert y0 - y1 == pytest.approx(y1 - y2, abs=0.2)
    (group,) = elements(markup, "g")
    assert group.attrib["data-name"] == SCRIPT
    assert len(json.loads(group.attrib["data-points"])) == 3


def test_values_that_are_not_finite_are_counted_and_long_curves_thinned() -> None:
    points = [(float(place), float("nan") if place < 3 else 1.0) for place in range(5000)]
    chart = Chart("key", "t", "x", "y", [Series("a", points), Series("b", [(0.0, float("inf"))])]).finite
    assert [one.name for one in chart.series] == ["a"]
    assert chart.note == "4 values are NaN or infinite and not drawn."
    (line,) = elements(svg(chart), "polyline")
    assert len(line.attrib["points"].split()) <= MOST_POINTS + 1


def test_bars_of_a_label_stand_side_by_side_and_a_heatmap_has_every_cell() -> None:
    series = [Series("a", [(0.0, 50.0), (1.0, 100.0)]), Series("b", [(0.0, 25.0), (1.0, 0.0)])]
    bars = elements(svg(Chart("k", "t", "", "%", series, "bars", ["x", "y"], y_range=(0, 100))), "rect")
    heights = [float(bar.attrib["height"]) for bar in bars]
    assert heights == pytest.approx([heights[1] / 2, heights[1], heights[1] / 4, 0], abs=0.2)
    heat = Heatmap("k", "t", "x", "y", [[0.0, 1.0], [2.0, float("nan")]], 0.75, 0.0, 4.0)
    cells = [cell for cell in elements(svg(heat), "rect") if cell.attrib["class"] == "cell"]
    assert [cell.attrib["style"] for cell in cells] == [
        f"--share:{share}" for share in ("0.000", "0.250", "0.500", "1.000")
    ]


def test_a_constant_lies_above_zero_and_epochs_are_whole() -> None:
    chart = Chart("lr", "t", "epoch", "rate", [Series("lr", [(1.0, 0.1), (2.0, 0.1)])])
    assert frame_of(chart).y == (0.0, 0.2)
    marks = elements(svg(chart), "text")
    assert [mark.text for mark in marks if mark.attrib.get("text-anchor") == "middle"] == ["1", "2"]


def test_long_names_below_bars_are_turned() -> None:
    names = ["airplane", "automobile", *"abcdefgh"]
    bars = Chart(
        "k", "t", "", "%", [Series("a", [(float(place), 1.0) for place in range(10)])], "bars", names
    )
    turned = [mark for mark in elements(svg(bars), "text") if "rotate" in mark.attrib.get("transform", "")]
    assert [mark.text for mark in turned] == names
