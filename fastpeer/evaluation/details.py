"""Further tables of an evaluation: accuracy on each class, and over the radius of the attack."""

from collections.abc import Iterator, Mapping, Sequence

from fastpeer.config import format_fraction
from fastpeer.errors import printable
from fastpeer.evaluation.attack_names import heading
from fastpeer.evaluation.by_image import ByImage, ClassAccuracy
from fastpeer.evaluation.results import Result, cell, images_of, wilson_interval
from fastpeer.evaluation.table import NORMS, images_text, warning_notes
from fastpeer.evaluation.targets import Target
from fastpeer.printing import FigureTable, Row
from fastpeer.table_formats import Report


def show_by_class(results: Mapping[Target, Sequence[Result]], report: Report) -> None:
    """Show each student's accuracy in % on the images of each class, and on its worst class.

    Raises:
        UserError: stored results do not tell how each image was classified.
    """
    for target, row in results.items():
        found = [(result, images_of(target.results_file, result)) for result in row]
        if found:
            report.tables("", [_class_table(target.label, found)])


def _class_table(label: str, found: Sequence[tuple[Result, ByImage]]) -> FigureTable:
    names = found[0][1].classes
    part = any(result.images < result.total for result, _ in found)
    columns = [[_class_cell(figure, part) for figure in images.by_class()] for _, images in found]
    counts = [str(figure.images) for figure in found[0][1].by_class()]
    rows = [
        Row(printable(name), [count, *cells])
        for name, count, *cells in zip(names, counts, *columns, strict=True)
    ]
    worst = Row("worst class", ["", *(_worst_cell(images.worst_class()) for _, images in found)])
    headings = ("class", "images", *(_point(result, [other for other, _ in found]) for result, _ in found))
    return FigureTable(headings, [rows, [worst]], f"{label}: accuracy in % on each class")


def _class_cell(figure: ClassAccuracy, part: bool) -> str:
    if not figure.images:
        return ""
    text = f"{100 * figure.correct / figure.images:.2f}"
    low, high = wilson_interval(figure.correct, figure.images)
    return f"{text} [{low:.1f}, {high:.1f}]" if part else text


def _worst_cell(figure: ClassAccuracy) -> str:
    return f"{printable(figure.name)} {100 * figure.correct / figure.images:.2f}"


def _point(result: Result, others: Sequence[Result]) -> str:
    """Return an attack's heading, with its radius where there are several."""
    name = heading(result.attack, result.norm)
    if result.attack == "clean" or len({other.epsilon for other in others if other.attack != "clean"}) == 1:
        return name
    return f"{name} {format_fraction(result.epsilon)}"


def show_curves(results: Mapping[Target, Sequence[Result]], report: Report) -> None:
    """Show a table for each attack: the students' accuracies in % over the radius, 0 being clean images.

    An attack that finds less in a larger ball, which holds the smaller one, is named below.
    """
    rows = {target: row for target, row in results.items() if row}
    longest = max(rows.values(), key=len)
    clean = [result.attack for result in longest if result.attack == "clean"]
    for attack in dict.fromkeys(result.attack for result in longest if result.attack != "clean"):
        radii = [result.epsilon for result in longest if result.attack == attack]
        headings = ("student", *("0" for _ in clean), *map(format_fraction, radii))
        table = [
            Row(target.label, _curve_cells(row, attack, radii, bool(clean))) for target, row in rows.items()
        ]
        report.tables("", [FigureTable(headings, [table], _curve_title(attack, longest[-1]))])
    for target, row in rows.items():
        for line in rising(row):
            report.note(f"{target.label}: {line}")
    for note in warning_notes(rows):
        report.note(note)


def _curve_title(attack: str, result: Result) -> str:
    name, images = heading(attack, result.norm), images_text(result.images, result.total, result.dataset)
    return f"{name}: accuracy in % over {NORMS[result.norm]} epsilon, {images}, fp32"


def _curve_cells(row: Sequence[Result], attack: str, radii: Sequence[float], clean: bool) -> list[str]:
    found = {(result.attack, result.epsilon): cell(result) for result in row}
    first = [next((cell(result) for result in row if result.attack == "clean"), "")] if clean else []
    return first + [found.get((attack, radius), "") for radius in radii]


def rising(row: Sequence[Result]) -> Iterator[str]:
    """Yield a line for each attack of a student that finds less at some radius than at a smaller one.

    The larger ball holds the smaller one, so that the true accuracy cannot rise.
    """
    clean = [result for result in row if result.attack == "clean"]
    for attack in dict.fromkeys(result.attack for result in row if result.attack != "clean"):
        points = sorted((other for other in row if other.attack == attack), key=lambda result: result.epsilon)
        for smaller, larger in zip([*clean, *points], points if clean else points[1:], strict=False):
            if larger.accuracy > smaller.accuracy:
                where = "without an attack" if smaller.attack == "clean" else _at(smaller)
                yield (
                    f"{heading(attack, larger.norm)} is weaker {_at(larger)} ({larger.accuracy:.2f} %) than"
                    f" {where} ({smaller.accuracy:.2f} %), although the larger ball holds the smaller one:"
                    f" accuracy {_at(larger)} is at most {smaller.accuracy:.2f} %"
                )


def _at(result: Result) -> str:
    return f"at epsilon {format_fraction(result.epsilon)}"
