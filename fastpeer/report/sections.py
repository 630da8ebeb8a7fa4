"""The sections of a run on the page: facts, tables, charts, and what it lacks with the command for that."""

import shlex
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import groupby
from typing import Any

from fastpeer.config import format_fraction
from fastpeer.config.differences import other_data, other_settings
from fastpeer.evaluation.attack_names import heading
from fastpeer.evaluation.results import Result, cell
from fastpeer.evaluation.table import NORMS, PAPER_FIGURES, images_text
from fastpeer.printing import format_seconds
from fastpeer.provenance import UNKNOWN, provenance_rows
from fastpeer.report.charts import Chart, Heatmap
from fastpeer.report.figures import (
    LossScale,
    broken_chart,
    class_chart,
    cross_charts,
    epsilon_chart,
    feature_charts,
    landscape_charts,
    landscape_plane,
    stored_class_chart,
    training_charts,
)
from fastpeer.report.measurements import STEPS, Arrays
from fastpeer.report.pictures import Picture, pictures
from fastpeer.report.records import RunReport
from fastpeer.report.stored import Stored


@dataclass(frozen=True)
class Missing:
    """What a run lacks, and the command that would make it; empty: there is none."""

    what: str
    command: str = ""


@dataclass(frozen=True)
class Table:
    """A table of texts; a row's first cell is its name."""

    headings: Sequence[str]
    rows: Sequence[Sequence[str]]
    title: str = ""


@dataclass(frozen=True)
class Section:
    """A part of the page with a heading."""

    title: str
    charts: Sequence["Chart | Heatmap"] = ()
    tables: Sequence[Table] = ()
    pictures: Sequence[Picture] = ()
    missing: Sequence[Missing] = ()
    notes: Sequence[str] = field(default_factory=list)


@dataclass(frozen=True)
class Network:
    """What is known of a run's networks beside its records.

    Attributes:
        arrays: what was measured (`fastpeer.report.measurements.measure`).
        stored: how eval classified the test images under attacks; may be empty.
        scale: of the loss landscapes on the page.
    """

    arrays: Arrays
    stored: Stored
    scale: LossScale


def sections(report: RunReport, network: Network | None, complaint: str) -> Iterator[Section]:
    """Yield the sections of a run.

    Args:
        report: what its files tell.
        network: what is known of its networks; None: nothing.
        complaint: why nothing was measured.
    """
    yield results_section(report)
    yield _training(report)
    if network is None:
        yield Section("The network", missing=[Missing(complaint, _command(report, "report"))])
        return
    yield from _network(report, network)


def _network(report: RunReport, network: Network) -> Iterator[Section]:
    arrays, one = network.arrays, {report.name: network.arrays}
    weights, sha256 = arrays["weights"]
    yield Section(
        "Images under attack",
        pictures=list(pictures(arrays)),
        notes=[
            f"PGD-{STEPS} with the training's norm and epsilon on {weights} (SHA-256 {sha256[:12]})."
            " Gradients: of the loss at the clean image, clipped at 3 standard deviations, absolute values"
            " summed over the channels (Figure 6 of the paper)."
        ],
    )
    by_class = stored_class_chart(network.stored) if network.stored else class_chart(arrays)
    charts = [by_class, epsilon_chart(one, report.config.attack.norm)]
    yield Section("By class and by epsilon", [chart for chart in charts if chart.series])
    note = (
        "Filter-normalised random directions (Li et al. 2018, Figure 4 of the paper), BatchNorm and biases"
        " left where they are; adversarial images as found at the weights in the middle."
    )
    landscapes: list[Chart | Heatmap] = [*landscape_charts(one, network.scale)]
    landscapes.append(landscape_plane(arrays, network.scale))
    yield Section("Loss landscape", landscapes, notes=[note])
    yield _features(arrays)


def _features(arrays: Arrays) -> Section:
    charts = list(feature_charts(arrays))
    missing = [] if charts else [Missing("too few test images, or no linear layer to show the input of")]
    note = (
        "t-SNE of the input of the last layer, three classes drawn by the run's seed, clean and under attacks"
        " on the student (Figure 5 of the paper). Distances between groups mean little."
    )
    return Section("Features", charts, notes=[note] if charts else [], missing=missing)


def _training(report: RunReport) -> Section:
    charts = list(training_charts(report))
    crossed = list(cross_charts(report))
    missing = []
    if not charts:
        missing.append(Missing("no step was logged yet", _resume(report)))
    if not crossed:
        missing.append(
            Missing(
                "Figures 1 and 3 of the paper need accuracies on each other's examples over the epochs,"
                " which this training did not record (record.cross_robustness)"
            )
        )
    return Section("Training", [*charts, *crossed], missing=missing)


def results_section(report: RunReport) -> Section:
    """Return the accuracies that fastpeer eval found, beside the paper's row."""
    if not report.results:
        missing = [Missing("fastpeer eval has not attacked this run yet", _command(report, "eval"))]
        return Section("Accuracy on test images", missing=missing, notes=list(_departures(report)))
    missing = []
    if not any(result.attack == "aa" for result in report.results):
        command = f"{_command(report, 'eval')} --attacks clean,fgsm,pgd20,aa"
        missing = [Missing("AutoAttack was not run", command)]
    charts = list(broken_chart(report))
    notes = [*_departures(report), *_warnings(report)]
    return Section("Accuracy on test images", charts, list(_tables(report)), missing=missing, notes=notes)


def _tables(report: RunReport) -> Iterator[Table]:
    """Yield a table for each set of images and each ball: no others can be compared."""
    for title, group in groupby(sorted(report.results, key=title_of), key=title_of):
        results = list(group)
        attacks = list(dict.fromkeys(result.attack for result in results))
        targets = dict.fromkeys(result.target for result in results)
        rows = [_row(target, attacks, results) for target in targets]
        rows += _paper_row(report, results[0], attacks)
        yield Table(["student", *map(heading, attacks)], rows, title)


def _row(target: str, attacks: Sequence[str], results: Iterable[Result]) -> list[str]:
    # The last one of those that differ in their seed alone.
    found = {result.attack: cell(result) for result in results if result.target == target}
    return [target, *(found.get(attack, "–") for attack in attacks)]


def _paper_row(report: RunReport, result: Result, attacks: Sequence[str]) -> list[list[str]]:
    paper = report.config.paper
    ours = (result.norm, result.epsilon, result.step_size, result.dataset)
    if paper is None or ours != ("linf", 8 / 255, 2 / 255, paper.dataset):
        return []
    figures = [f"{getattr(paper, name):.2f}" if name in PAPER_FIGURES else "–" for name in attacks]
    return [[f"paper, {paper.row}", *figures]]


def title_of(result: Result) -> str:
    """Describe images and ball of a result."""
    images = images_text(result.images, result.total, result.dataset)
    norm, epsilon = NORMS.get(result.norm, result.norm), format_fraction(result.epsilon)
    return f"in % on {images}, {norm} epsilon {epsilon}"


def _departures(report: RunReport) -> Iterator[str]:
    paper, config = report.config.paper, report.config
    if paper is not None:
        pixels = report.results[0].pixels if report.results else ""
        others = [*other_data(report.data[0], pixels, paper), *other_settings(config)]
        if others:
            yield f"Not the paper's settings ({paper.row}): other {', '.join(others)}."
    split = "test images" if config.selection.split == "test" else "held-out training images"
    yield f"The best epoch was chosen on {split}."


def _warnings(report: RunReport) -> Iterator[str]:
    found = ((result.target, warning) for result in report.results for warning in result.warnings)
    yield from (f"(!) {target}: {warning}" for target, warning in dict.fromkeys(found))


def facts_of(report: RunReport) -> Iterator[tuple[str, str]]:
    """Yield what was trained, and how: name and value."""
    config, facts = report.config, report.facts
    trained = [f"student {config.model.student}"]
    trained += [f"peer {config.model.peer}"] if "peer" in config.table.trained else []
    yield "method", f"{config.method}, {', '.join(trained)}"
    yield "recipe", str(facts.get("recipe", UNKNOWN))
    yield "data", _data(facts["data"])
    norm, epsilon = NORMS[config.attack.norm], format_fraction(config.attack.epsilon)
    yield "attack in training", f"{norm}, epsilon {epsilon}, {config.attack.steps} steps"
    yield "trained", f"{report.records.last_step:,} of {report.total_steps:,} steps logged"
    seconds = report.training_seconds
    yield "time in steps", format_seconds(seconds) if seconds else "nothing logged yet"
    yield "precision, seed", f"{config.precision}, {config.seed}"
    threads = facts.get("threads")
    yield "device", str(facts.get("device", UNKNOWN)) + (f", threads: {threads}" if threads else "")
    versions = facts.get("versions")
    known = versions.items() if isinstance(versions, Mapping) else ()
    yield "versions", ", ".join(f"{name} {value}" for name, value in known if value) or UNKNOWN
    yield from provenance_rows(facts)
    yield "run it again", f"fastpeer train {shlex.quote(str(report.run.config_file))}"


def _data(data: Mapping[str, Any]) -> str:
    size = data.get("size")
    sides = f", {size[1]}×{size[0]} pixels" if isinstance(size, list) and len(size) == 2 else ""
    return f"{data.get('name', '')}, {data.get('classes', '?')} classes{sides}, {data['folder']}"


def _command(report: RunReport, command: str) -> str:
    return f"fastpeer {command} {shlex.quote(str(report.run.path))}"


def _resume(report: RunReport) -> str:
    return f"fastpeer train --resume --out {shlex.quote(str(report.run.path))}"
