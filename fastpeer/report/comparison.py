"""Several runs side by side: one table, curves over each other, and where they disagree image by image."""

from collections.abc import Iterator, Mapping, Sequence
from itertools import combinations

import numpy as np

from fastpeer.evaluation.results import Result, cell
from fastpeer.report.charts import Chart
from fastpeer.report.figures import epsilon_chart, landscape_charts, selection_chart
from fastpeer.report.measurements import STEPS, Arrays
from fastpeer.report.records import RunReport
from fastpeer.report.sections import Section, Table, heading


def comparison(reports: Sequence[RunReport], measured: Mapping[str, Arrays]) -> Iterator[Section]:
    """Yield the sections about several runs; those of other data are kept apart, and that is said.

    Args:
        reports: what the runs' files tell.
        measured: what was measured of the networks, by the run's name.
    """
    groups = _by_data(reports)
    notes = []
    if len(groups) > 1:
        notes = ["Different test images: figures cannot be compared, and curves are kept apart."]
    yield Section("Comparison", tables=[_table(reports)], notes=notes)
    for (data, sha256), group in groups.items():
        if len(group) < 2:
            continue  # Its own chapter has its curves.
        named = {report.name: measured[report.name] for report in group if report.name in measured}
        title = f"Side by side, {data}" + (f" ({sha256[:8]})" if len(groups) > 1 else "")
        yield Section(title, list(_charts(group, named)), tables=list(_disagreement(named)))


def _by_data(reports: Sequence[RunReport]) -> dict[tuple[str, str], list[RunReport]]:
    groups: dict[tuple[str, str], list[RunReport]] = {}
    for report in reports:
        groups.setdefault(report.data, []).append(report)
    return groups


def _charts(group: Sequence[RunReport], measured: Mapping[str, Arrays]) -> Iterator[Chart]:
    selection = selection_chart(group).finite
    if selection.series:
        yield selection
    if measured:
        norms = {report.config.attack.norm for report in group}
        # Radii of another norm have no place on the same axis.
        if len(norms) == 1:
            yield epsilon_chart(measured, *norms)
        yield from landscape_charts(measured)


def _table(reports: Sequence[RunReport]) -> Table:
    found = {report.name: _usual(report) for report in reports}
    attacks = list(dict.fromkeys(attack for row in found.values() for attack in row))
    rows = [
        [report.name, report.config.method, report.config.model.student, report.data[0],
         str(report.records.last_step), *(found[report.name].get(attack, "–") for attack in attacks)]
        for report in reports
    ]  # fmt: skip
    title = "in % on all test images, L-infinity epsilon 8/255; a heading sorts"
    return Table(["run", "method", "student", "data", "steps", *map(heading, attacks)], rows, title)


def _usual(report: RunReport) -> dict[str, str]:
    """Return the best student's accuracies, else any's, under the usual attacks on all test images."""
    usual = [result for result in report.results if _is_usual(result)]
    best = [result for result in usual if result.target.endswith(" best")]
    return {result.attack: cell(result) for result in best or usual}


def _is_usual(result: Result) -> bool:
    ball = (result.norm, result.epsilon)
    return result.images == result.total and (result.attack == "clean" or ball == ("linf", 8 / 255))


def _disagreement(measured: Mapping[str, Arrays]) -> Iterator[Table]:
    """Yield, for clean and attacked images, how many each pair of runs classifies differently."""
    pairs = [
        pair
        for pair in combinations(measured.items(), 2)
        if np.array_equal(pair[0][1]["labels"], pair[1][1]["labels"])
    ]
    for key, title in (("clean", "clean"), ("attacked", f"under PGD-{STEPS}, each against itself")):
        rows = [[f"{a} | {b}", *_counts(first, second, key)] for (a, first), (b, second) in pairs]
        if rows:
            headings = ["runs", "both right", "only the first", "only the second", "neither"]
            images = len(pairs[0][0][1]["labels"])
            yield Table(headings, rows, f"Image by image, {title}: of {images} test images")


def _counts(first: Arrays, second: Arrays, key: str) -> list[str]:
    one, other = (arrays[key] == arrays["labels"] for arrays in (first, second))
    counts = (one & other, one & ~other, ~one & other, ~one & ~other)
    return [str(int(both.sum())) for both in counts]
