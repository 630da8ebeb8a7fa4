"""Several runs side by side: one table, curves over each other, and where they disagree image by image."""

from collections.abc import Iterator, Mapping, Sequence
from itertools import combinations

import numpy as np

from fastpeer.evaluation.attack_names import heading
from fastpeer.evaluation.results import cell, usual_of_student
from fastpeer.report.charts import Chart, Heatmap
from fastpeer.report.figures import epsilon_chart, landscape_charts, landscape_plane, selection_chart
from fastpeer.report.measurements import STEPS
from fastpeer.report.records import RunReport
from fastpeer.report.sections import Network, Section, Table


def comparison(reports: Sequence[RunReport], networks: Mapping[str, Network]) -> Iterator[Section]:
    """Yield the sections about several runs; those of other data are kept apart, and that is said.

    Args:
        reports: what the runs' files tell.
        networks: what is known of the networks, by the run's name.
    """
    groups = _by_data(reports)
    notes = []
    if len(groups) > 1:
        notes = ["Different test images: figures cannot be compared, and curves are kept apart."]
    yield Section("Comparison", tables=[_table(reports)], notes=notes)
    for (data, sha256), group in groups.items():
        if len(group) < 2:
            continue  # Its own chapter has its curves.
        named = {report.name: networks[report.name] for report in group if report.name in networks}
        title = f"Side by side, {data}" + (f" ({sha256[:8]})" if len(groups) > 1 else "")
        yield Section(title, list(_charts(group, named)), tables=list(_disagreement(named)))


def _by_data(reports: Sequence[RunReport]) -> dict[tuple[str, str], list[RunReport]]:
    groups: dict[tuple[str, str], list[RunReport]] = {}
    for report in reports:
        groups.setdefault(report.data, []).append(report)
    return groups


def _charts(group: Sequence[RunReport], networks: Mapping[str, Network]) -> Iterator[Chart | Heatmap]:
    selection = selection_chart(group).finite
    if selection.series:
        yield selection
    measured = {name: network.arrays for name, network in networks.items()}
    if not measured:
        return
    norms = {report.config.attack.norm for report in group}
    # Radii of another norm have no place on the same axis.
    if len(norms) == 1:
        yield epsilon_chart(measured, *norms)
    scale = next(iter(networks.values())).scale
    yield from landscape_charts(measured, scale)
    for name, arrays in measured.items():
        yield landscape_plane(arrays, scale, name)


def _table(reports: Sequence[RunReport]) -> Table:
    found = {
        report.name: {attack: cell(result) for attack, result in usual_of_student(report.results).items()}
        for report in reports
    }
    attacks = list(dict.fromkeys(attack for row in found.values() for attack in row))
    rows = [
        [report.name, report.config.method, report.config.model.student, report.data[0],
         str(report.records.last_step), *(found[report.name].get(attack, "–") for attack in attacks)]
        for report in reports
    ]  # fmt: skip
    title = "in % on all test images, L-infinity epsilon 8/255; a heading sorts"
    return Table(["run", "method", "student", "data", "steps", *map(heading, attacks)], rows, title)


def _disagreement(networks: Mapping[str, Network]) -> Iterator[Table]:
    """Yield, for clean and attacked images, how many each pair of runs classifies differently."""
    tables: dict[str, list[list[str]]] = {}
    for (a, first), (b, second) in combinations(networks.items(), 2):
        for title, right, other_right in _alike(first, second):
            tables.setdefault(title, []).append([f"{a} | {b}", *_counts(right, other_right)])
    headings = ["runs", "both right", "only the first", "only the second", "neither"]
    for title, rows in tables.items():
        yield Table(headings, rows, title)


def _alike(first: Network, second: Network) -> Iterator[tuple[str, np.ndarray, np.ndarray]]:
    """Yield, clean and under attack, a table's title and on which images, the same, each is right."""
    stored = [
        attack
        for attack in first.stored
        if attack in second.stored and np.array_equal(first.stored[attack].index, second.stored[attack].index)
    ]
    if len(stored) > 1:
        for attack in (stored[0], stored[-1]):
            one, other = first.stored[attack].correct, second.stored[attack].correct
            how = _against(heading(attack)) if attack != "clean" else "clean"
            yield f"Image by image, {how}: of {len(one):,} test images, as fastpeer eval found it", one, other
        return
    images = min(len(network.arrays["labels"]) for network in (first, second))
    labels, others = (network.arrays["labels"][:images] for network in (first, second))
    for key, how in (("clean", "clean"), ("attacked", _against(f"PGD-{STEPS}"))):
        if np.array_equal(labels, others):
            one, other = (network.arrays[key][:images] == labels for network in (first, second))
            yield f"Image by image, {how}: of {images} test images, attacked for this page", one, other


def _against(attack: str) -> str:
    return f"under {attack}, each against itself"


def _counts(one: np.ndarray, other: np.ndarray) -> list[str]:
    counts = (one & other, one & ~other, ~one & other, ~one & ~other)
    return [f"{int(both.sum()):,}" for both in counts]
