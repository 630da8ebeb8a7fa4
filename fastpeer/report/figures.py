"""The charts of a run: from its records, its results and what was measured of its networks."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from math import ceil, isfinite

import numpy as np

from fastpeer.evaluation.attack_names import heading
from fastpeer.report.charts import Chart, Heatmap, Series
from fastpeer.report.measurements import STEPS, Arrays
from fastpeer.report.records import Points, RunReport
from fastpeer.report.stored import Stored

READABLE = {"ce": "cross-entropy", "kl": "KL"}


def readable(key: str) -> str:
    """Return a key of the log in words: student_ce is student cross-entropy, pgd10 is PGD-10."""
    words = (heading(word) if word.startswith("pgd") else READABLE.get(word, word) for word in key.split("_"))
    return " ".join(words)


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
        Series(readable(name), report.records.curve(key, name, steps_per_epoch=per_epoch))
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
    return Chart("selection", f"Accuracy on {on}", "epoch", "%", series, y_range=_percents(series))


def _percents(series: Sequence[Series]) -> tuple[float, float]:
    """Return ends of an axis in %, from 0 to a multiple of 20: robust accuracies are often far below 100."""
    top = max((y for one in series for _, y in one.points if isfinite(y)), default=100.0)
    return 0.0, min(100.0, max(20.0, 20.0 * ceil(top / 20)))


def _selected(report: RunReport, network: str, name: str) -> Iterator[Series]:
    for attack in report.records.names("selection", network):
        curve = report.records.curve("selection", network, attack, steps_per_epoch=report.steps_per_epoch)
        yield Series(f"{name} {readable(attack)}", curve)


def cross_charts(report: RunReport) -> Iterator[Chart]:
    """Yield the paper's Figures 1 and 3: who withstands whose examples over the epochs, if it was logged."""
    for split in report.records.names("cross_robustness"):
        series = []
        for network in report.records.names("cross_robustness", split):
            for images in report.records.names("cross_robustness", split, network):
                names = ("cross_robustness", split, network, images)
                curve = report.records.curve(*names, steps_per_epoch=report.steps_per_epoch)
                series.append(Series(f"{network.replace('_', ' ')}, {_examples(images, network)}", curve))
        kind = {"train": "training images", "val": "held-out training images", "test": "test images"}
        title = f"Who withstands whose examples, {kind.get(split, split)}"
        record = report.config.record
        images = f"{record.images or 'all'} images, the same in all epochs"
        note = f"PGD-{record.steps}, {images} (Figures 1 and 3 of the paper)."
        chart = Chart(f"cross-{split}", title, "epoch", "%", series, note=note, y_range=_percents(series))
        yield from _shown(chart)


def _examples(key: str, network: str) -> str:
    """Return in words on which images a network is tried: clean, its own examples, or another's."""
    whose = key.removeprefix("on_")
    if key == whose:
        return key
    return "own examples" if whose == network else f"{whose.replace('_', ' ')}'s examples"


def stored_class_chart(stored: Stored) -> Chart:
    """Return the accuracy of each class, clean and under the strongest attack, as eval has stored it."""
    clean, *_, attacked = stored
    series = [
        Series(
            heading(attack),
            [
                (float(place), 100 * found.correct / found.images)
                for place, found in enumerate(stored[attack].by_class())
                if found.images
            ],
        )
        for attack in (clean, attacked)
    ]
    note = f"As fastpeer eval found it, {_counts(stored[clean].label, stored[clean].classes)}."
    return _class_chart(series, stored[clean].classes, note)


def class_chart(arrays: Arrays) -> Chart:
    """Return the accuracy of each class, clean and under attack, as it was measured for the page."""
    names, labels = [str(name) for name in arrays["classes"]], arrays["labels"]
    series = [
        Series(title, _class_accuracies(labels, arrays[key], len(names)))
        for title, key in (("clean", "clean"), (f"PGD-{STEPS}", "attacked"))
    ]
    return _class_chart(series, names, f"Attacked for this page: {_counts(labels, names)}.")


def _class_chart(series: Sequence[Series], names: Sequence[str], note: str) -> Chart:
    return Chart("classes", "Accuracy by class", "", "%", series, "bars", names, note, (0.0, 100.0)).finite


def _counts(labels: np.ndarray, names: Sequence[str]) -> str:
    counts = np.bincount(labels, minlength=len(names))
    least, most = counts.min(), counts.max()
    each = f"{least:,} of each class" if least == most else f"{least:,} to {most:,} of a class"
    return f"{len(labels):,} test images, {each}"


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
    return Chart("epsilon", title, unit, "%", series, note=note, y_range=_percents(series)).finite


@dataclass(frozen=True)
class LossScale:
    """The range of loss that landscapes on a page share (Figure 4 of the paper: methods on the same scale).

    Attributes:
        top: of the curves in one dimension; they begin at 0.
        low, high: of the colours over two dimensions.
        runs: how many share it.
    """

    top: float
    low: float
    high: float
    runs: int

    @property
    def note(self) -> str:
        """What a caption says of the colours."""
        shared = f", {self.shared}" if self.runs > 1 else ""
        return f"Cross-entropy from {self.low:.3g} (faint) to {self.high:.3g} (strong){shared}."

    @property
    def shared(self) -> str:
        """Who shares the scale, in words."""
        return f"the same for {'both' if self.runs == 2 else f'all {self.runs}'} runs on this page"


def loss_scale(measured: Iterable[Arrays]) -> LossScale:
    """Return the scale on which the landscapes of all these runs have place; what is not finite has none."""
    runs = list(measured)
    lines = [arrays[key] for arrays in runs for key in ("line_clean", "line_attacked")]
    curves, planes = _finite(lines), _finite([arrays["plane"] for arrays in runs])
    return LossScale(curves.max(initial=0.0) or 1.0, planes.min(), planes.max(), len(runs))


def _finite(arrays: Sequence[np.ndarray]) -> np.ndarray:
    found = np.concatenate([array.ravel() for array in arrays])
    found = found[np.isfinite(found)]
    return found if len(found) else np.array([0.0, 1.0])


def landscape_charts(measured: Mapping[str, Arrays], scale: LossScale) -> Iterator[Chart]:
    """Yield the paper's Figure 4 in one dimension, of all runs on the same scale."""
    images = {"clean": "line_clean", "adversarial": "line_attacked"}
    curves = {
        (name, kind): list(zip(arrays["alphas"].tolist(), arrays[key].tolist(), strict=True))
        for name, arrays in measured.items()
        for kind, key in images.items()
    }
    if len(measured) == 1:
        series = [Series(f"{kind} images", points) for (_, kind), points in curves.items()]
        yield from _shown(_landscape("landscape", "Loss around the weights", series, scale))
        return
    for kind in images:
        series = [Series(name, curves[name, kind]) for name in measured]
        title = f"Loss around the weights, {kind} images"
        yield from _shown(_landscape(f"landscape-{kind}", title, series, scale))


def _landscape(key: str, title: str, series: list[Series], scale: LossScale) -> Chart:
    along, note = "distance along the direction", ""
    if scale.runs > 1:
        note = f"Height from 0 to {1.05 * scale.top:.3g}, {scale.shared}."
    return Chart(key, title, along, "cross-entropy", series, note=note, y_range=(0.0, 1.05 * scale.top))


def landscape_plane(arrays: Arrays, scale: LossScale, name: str = "") -> Heatmap:
    """Return the same over two directions, under adversarial images; `name` tells it from other runs'."""
    extent = float(arrays["alphas"].max())
    title = f"Loss over two directions, {name or 'adversarial images'}"
    axes, values = ("first direction", "second direction"), arrays["plane"].tolist()
    key = f"plane-{name}" if name else "plane"
    return Heatmap(key, title, *axes, values, extent, scale.low, scale.high, scale.note)


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
