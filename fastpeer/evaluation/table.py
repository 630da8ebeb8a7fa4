"""The table of an evaluation's results, with the paper's figures for comparison."""

from collections.abc import Iterable, Iterator, Mapping, Sequence

from rich.console import Console
from rich.table import Table
from rich.text import Text

from fastpeer.config import PaperConfig, format_fraction
from fastpeer.config.differences import other_data, other_settings
from fastpeer.evaluation.autoattack import TARGETS
from fastpeer.evaluation.results import Result
from fastpeer.evaluation.targets import Target

HEADINGS = {"clean": "clean", "fgsm": "FGSM", "aa": "AutoAttack"}
PAPER_FIGURES = ("clean", "fgsm", "pgd20", "aa")


def print_results(results: Mapping[Target, Sequence[Result]], console: Console) -> None:
    """Print a row for each student, the paper's figures below each run's rows, and notes below the table.

    Args:
        results: results of each target, with the same attacks in the same order.
        console: where to print.
    """
    first_row = next(iter(results.values()))
    console.print(_title(first_row[0]), highlight=False)
    table = Table()
    table.add_column("student", overflow="fold")
    for result in first_row:
        table.add_column(_heading(result.attack), justify="right", no_wrap=True)
    for rows in _by_run(results):
        table.add_section()
        for target, row in rows.items():
            table.add_row(Text(target.label, overflow="fold"), *map(_cell, row))
        paper = _comparable_paper(*next(iter(rows.items())))
        if paper is not None:
            figures = (_paper_cell(paper, result.attack) for result in first_row)
            table.add_row(Text(f"paper, {paper.row}", overflow="fold"), *figures, style="italic")
    console.print(table)
    for note in _notes(results):
        console.print(note, highlight=False, markup=False)


def _by_run(results: Mapping[Target, Sequence[Result]]) -> Iterable[dict[Target, Sequence[Result]]]:
    """Group the students by run, in order of appearance; weights that belong to no run are a group each."""
    runs: dict[object, dict[Target, Sequence[Result]]] = {}
    for target, row in results.items():
        runs.setdefault(target.run.path.absolute() if target.run else target, {})[target] = row
    return runs.values()


def _title(result: Result) -> str:
    images = f"all {result.total}" if result.images == result.total else f"{result.images} of {result.total}"
    return f"accuracy in % on {images} test images, epsilon {format_fraction(result.epsilon)}, fp32"


def _comparable_paper(target: Target, row: Sequence[Result]) -> PaperConfig | None:
    """Return the paper's row for a run's recipe, if data set and attack are the paper's too."""
    paper = target.config.paper if target.config else None
    comparable = paper is not None and paper.dataset == row[0].dataset and _has_papers_radius(row[0])
    return paper if comparable else None


def _has_papers_radius(result: Result) -> bool:
    return (result.epsilon, result.step_size) == (8 / 255, 2 / 255)


def _notes(results: Mapping[Target, Sequence[Result]]) -> Iterator[str]:
    configs = {target.run.path: target.config for target in results if target.run and target.config}
    rows = {target.run.path: row for target, row in results.items() if target.run}
    for path, config in configs.items():
        split = "test images" if config.selection.split == "test" else "held-out training images"
        others = other_settings(config)
        if config.paper is not None and (others or config.paper.dataset == rows[path][0].dataset):
            others = [*other_data(rows[path][0].dataset, rows[path][0].pixels, config.paper), *others]
        if config.paper is not None and others:
            yield f"{path}: not the paper's settings ({config.paper.row}): other {', '.join(others)}"
        yield f"{path}: best epochs were chosen on {split} (selection.split = {config.selection.split})"
    counts = {result.targets for row in results.values() for result in row if result.targets is not None}
    for count in counts:
        if count < TARGETS:
            yield f"AutoAttack aimed at {count} wrong classes, not at {TARGETS}: there are no more"
    if any(result.confidence_interval for row in results.values() for result in row):
        yield "in brackets: 95 % interval for the accuracy on all test images"


def _heading(attack: str) -> str:
    return HEADINGS.get(attack) or attack.upper().replace("PGD", "PGD-")


def _cell(result: Result) -> Text:
    if result.confidence_interval is None:
        return Text(f"{result.accuracy:.2f}")
    low, high = result.confidence_interval
    return Text(f"{result.accuracy:.2f} [{low:.1f}, {high:.1f}]")


def _paper_cell(paper: PaperConfig, attack: str) -> str:
    return f"{getattr(paper, attack):.2f}" if attack in PAPER_FIGURES else ""
