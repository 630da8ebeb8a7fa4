"""The charts of a run: from its records, its results and what was measured of its networks."""

from collections.abc import Iterator, Mapping, Sequence
from math import isfinite

import numpy as np

from fastpeer.report.charts import Chart, Heatmap, Series
from fastpeer.report.measurements import STEPS, Arrays
from fastpeer.report.records import Points, RunReport

READABLE = {"ce": "cross-entropy", "kl": "KL"}


def training_charts(report: RunReport) -> Iterator[Chart]:
    """Yield the curves of what a run has logged; those that it has not logged are left out."""
    yield from _shown(_logged(report, "losses", "Losses", "loss, weighted as trained"))
    yield from _shown(_logged(report, "accuracy", "Accuracy on training batches", "%"))
    yield from _shown(selection_chart([report]))
    for key, title, unit in (
        ("lr", "Learning rate", "rate"),
        ("images_per_second", "Speed", "images/s"),
    ):
        points = report.records.curve(key, steps_per_epoch=report.steps_per_epoch)
        yield from _shown(Chart(key.replace("_", "-"), title, "epoch", unit, [Series(title.lower(), points)]))


def _shown(chart: Chart) -> Iterator[Chart]:
    """Yield a chart if anything is left to draw of it."""
    finite = chart.finite
    if finite.series:
        yield finite


def _logged(report: RunReport, key: str, title: str, unit: str) -> Chart:
    per_epoch = report.steps_per_epoch
    series = [
        Series(name.replace("_", " "), report.records.curve(key, name, steps_per_epoch=per_epoch))
        for name in report.records.names(key)
    ]
    return Chart(key, title, "epoch", unit, series)


def selection_chart(reports: Sequence[RunReport]) -> Chart:
    """Return the accuracies at the ends of epochs; of several runs, those of the students alone."""
    series = []
    for report in reports:
        for network in report.records.names("selection"):
            if len(reports) > 1 and network != "student":
                continue
            name = report.name if len(reports) > 1 else network
            series += list(_selected(report, network, name))
    splits = {report.config.selection.split for report in reports}
    images = {"test": "test images", "val": "held-out training images"}
    on = " or ".join(sorted(images.get(split, split) for split in splits))
    return Chart("selection", f"Accuracy on {on}", "epoch", "%", series, y_range=(0.0, 100.0))


def _selected(report: RunReport, network: str, name: str) -> Iterator[Series]:
    for attack in report.records.names("selection", network):
        curve = report.records.curve("selection", network, attack, steps_per_epoch=report.steps_per_epoch)
        yield Series(f"{name} {attack.replace('_', ' ')}", curve)


def cross_charts(report: RunReport) -> Iterator[Chart]:
    """Yield the paper's Figures 1 and 3: who withstands whose examples over the epochs, if it was logged."""
    for split in report.records.names("cross_robustness"):
        series = []
        for network in report.records.names("cross_robustness", split):
            for images in report.records.names("cross_robustness", split, network):
                names = ("cross_robustness", split, network, images)
                curve = report.records.curve(*names, steps_per_epoch=report.steps_per_epoch)
                series.append(Series(f"{network} {images.replace('_', ' ')}", curve))
        title = f"Who withstands whose examples, {split} images"
        yield from _shown(Chart(f"cross-{split}", title, "epoch", "%", series, y_range=(0.0, 100.0)))


def class_chart(arrays: Arrays) -> Chart:
    """Return the accuracy of each class, clean and under attack."""
    names, labels = [str(name) for name in arrays["classes"]], arrays["labels"]
    series = [
        Series(title, _class_accuracies(labels, arrays[key], len(names)))
        for title, key in (("clean", "clean"), (f"PGD-{STEPS}", "attacked"))
    ]
    counts = np.bincount(labels, minlength=len(names))
    note = f"{len(labels)} test images, {counts.min()} to {counts.max()} of a class."
    return Chart("classes", "Accuracy by class", "", "%", series, "bars", names, note, (0.0, 100.0)).finite


def _class_accuracies(labels: np.ndarray, predicted: np.ndarray, classes: int) -> Points:
    found = {label: predicted[labels == label] == label for label in range(classes)}
    return [(label, 100 * float(right.mean())) for label, right in found.items() if len(right)]


def epsilon_chart(measured: Mapping[str, Arrays], norm: str) -> Chart:
    """Return the accuracies under attacks of growing radius, a curve for each run."""
    series = []
    for name, arrays in measured.items():
        right, images = arrays["right"], int(arrays["epsilon_images"])
        radii = arrays["epsilons"] * (255 if norm == "linf" else 1)
        series.append(
            Series(name, [(float(x), 100 * int(y) / images) for x, y in zip(radii, right, strict=True)])
        )
    counts = sorted({int(arrays["epsilon_images"]) for arrays in measured.values()})
    unit = "epsilon, in 1/255" if norm == "linf" else "epsilon (L2)"
    note = f"{', '.join(map(str, counts))} test images; the step grows with epsilon."
    title = f"Accuracy under PGD-{STEPS} over epsilon"
    return Chart("epsilon", title, unit, "%", series, note=note, y_range=(0.0, 100.0)).finite


def landscape_charts(measured: Mapping[str, Arrays]) -> Iterator[Chart]:
    """Yield the paper's Figure 4 in one dimension, of all runs on the same scale."""
    images = {"clean": "line_clean", "adversarial": "line_attacked"}
    curves = {
        (name, kind): list(zip(arrays["alphas"].tolist(), arrays[key].tolist(), strict=True))
        for name, arrays in measured.items()
        for kind, key in images.items()
    }
    top = max((y for points in curves.values() for _, y in points if isfinite(y)), default=1.0)
    if len(measured) == 1:
        series = [Series(f"{kind} images", points) for (_, kind), points in curves.items()]
        yield from _shown(_landscape("landscape", "Loss around the weights", series, top))
        return
    for kind in images:
        series = [Series(name, curves[name, kind]) for name in measured]
        title = f"Loss around the weights, {kind} images"
        yield from _shown(_landscape(f"landscape-{kind}", title, series, top))


def _landscape(key: str, title: str, series: list[Series], top: float) -> Chart:
    along = "distance along the direction"
    return Chart(key, title, along, "cross-entropy", series, y_range=(0.0, 1.05 * top))


def landscape_plane(arrays: Arrays) -> Heatmap:
    """Return the same over two directions."""
    extent = float(arrays["alphas"].max())
    title = "Loss over two directions, adversarial images"
    return Heatmap("plane", title, "first direction", "second direction", arrays["plane"].tolist(), extent)


def feature_charts(arrays: Arrays) -> Iterator[Chart]:
    """Yield the paper's Figure 5: t-SNE of penultimate features, for each network."""
    labels = arrays["embedded_labels"]
    for name in ("student", "peer"):
        if f"embedded_{name}" not in arrays:
            continue
        halves = np.split(arrays[f"embedded_{name}"], 2)
        series = [
            Series(
                f"{arrays['classes'][label]}, {'adversarial' if attacked else 'clean'}",
                [(x, y) for x, y in halves[attacked][labels == label].tolist()],
                number,
                attacked == 1,
            )
            for number, label in enumerate(np.unique(labels))
            for attacked in (0, 1)
        ]
        yield from _shown(Chart(f"tsne-{name}", f"Features of the {name}", "", "", series, "points"))


def broken_chart(report: RunReport) -> Iterator[Chart]:
    """Yield how many images each of AutoAttack's attacks broke, if AutoAttack was run."""
    found = [result for result in report.results if result.broken]
    if not found:
        return
    attacks = list(dict.fromkeys(name for result in found for name in result.broken))
    places = {name: float(place) for place, name in enumerate(attacks)}
    series = [
        Series(
            f"{result.target}, {result.images} images",
            [(places[name], count) for name, count in result.broken.items()],
        )
        for result in found
    ]
    note = "clean: classified wrongly without an attack. Each attack sees what the former ones left."
    title = "Images that AutoAttack's attacks broke"
    yield from _shown(Chart("autoattack", title, "", "images", series, "bars", attacks, note))
